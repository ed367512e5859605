"""Our own marketplace for machines one owns: a registry, and a host agent for each machine.

Run as `python -m jupyter_gpumarket.pool registry …` and `python -m jupyter_gpumarket.pool host …`.
"""
