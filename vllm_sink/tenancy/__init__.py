"""Whose a request is, what that tenant may have, and how it is shown.

::

    config.py           what the operator said: ``additional_config["sink_tenancy"]`` and its flags
    keys.py             the file of keys: name, keys and limits of each tenant, read again on change
    identity.py         the tenant of a request: by its key, a header or a field
    authentication.py   who may call which route (ASGI)
    limits.py           what each tenant has, and 429
    labels.py           its name on /metrics
"""
