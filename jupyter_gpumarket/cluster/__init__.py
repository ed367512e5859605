"""The cluster process: links to the nodes a user works with, cell runs and their logs, inputs and outputs.

Started as `python -m jupyter_gpumarket.cluster --folder FOLDER`, by the broker. It touches bytes from strangers'
machines, so it holds no marketplace keys, writes no journal, and unpickles nothing. It outlives the broker and the
doors; whatever it promised is on disk in its folder, so it may be killed at any moment:

    start.json      who it is; written by the broker
    broker.json     where the broker listens, with a token that only takes facts; rewritten by each new broker
    cluster.json    where this process listens, 0600
    nodes.json      the attached nodes, 0600
    facts.jsonl     what the broker has not taken yet
    runs/<run id>/  one cell run: request, state, messages, spilled output, output variables
    blobs/<sha256>  inputs
"""
