"""llama.cpp's own server, as xllamacpp holds it: prints its address, then serves until ended.

python -m benchmarks.peers.drivers.llamacpp_serve MODEL.gguf SINKS CACHE STREAMS
"""

from __future__ import annotations

import sys
import time


def main() -> None:
    import xllamacpp

    model, sinks, cache, streams = sys.argv[1], *map(int, sys.argv[2:5])
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_parallel = streams
    params.n_ctx = cache * streams  # of all slots together: each has ``cache``
    params.n_keep = sinks
    params.ctx_shift = True
    params.warmup = False
    params.fit_params = False
    params.cache_ram_mib = 0
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    print(f"listening on {server.listening_address}", flush=True)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()
