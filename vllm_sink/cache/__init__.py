"""The paged cache under the policy: a layer's spec, the manager of blocks, their hashes."""
