"""How fast a model runs on this machine, against what this machine could do at best.

``machine`` measures the two limits (bytes read per second, multiply-adds per second), ``work``
counts what a run needs of each, ``runs`` times decoding and prefill, ``operations`` splits a run
by operation, ``peers`` runs another implementation on the same weights. A run can take no less
than ``max(bytes / read bandwidth, FLOPs / sgemm rate)`` seconds: ``docs/performance.md``.
"""
