"""The broker process: journal, leases, budgets and the ledger behind one small HTTP door on loopback.

Started by `python -m jupyter_gpumarket.broker`, usually by `client.connect`; nobody imports it.

    process.py    lock, log, signals, broker.json: how the process lives and ends
    service.py    connects the parts, and answers what the routes ask
    routes.py     the one table of routes; `api.openapi` draws the document from it
    web.py        tokens, hosts, schemas, and errors as HTTP, in one place
    clusters.py   the cluster processes: started, adopted, told about nodes
    facts.py      what cluster processes report, taken once and in order
    purse.py      budgets: refused before, cut while running
    closing.py    final charges of ended leases, and their reconciliation
"""
