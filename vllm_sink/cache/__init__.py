"""The paged cache under the policy: the spec of a layer, the manager of its blocks, their hashes."""
