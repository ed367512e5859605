"""The Jupyter server extension: the browser's door to the broker.

    app.py        the extension: settings, hooks of Jupyter Server, what is started and stopped
    routes.py     the one table of routes under /gpumarket, and what each asks of the broker
    now.py        what is rented and owed, in one answer
    fanout.py     clusters, Dask on them and maps, in one answer
    clusters.py   what may be done to them
    quotes.py     what a rental would be, before it is
    runs.py       what a cell run wrote, as text
    files.py      costs as files
    handlers.py   who may call, how a call is read, how errors are answered
    dashboards.py       where a trusted cluster's Dask dashboard is
    dashboard_pages.py  its pages and sockets, passed through
    door.py       the one connection to the broker, started when it is first needed
    watch.py      looks at the broker while somebody uses it, and tells what has changed
    sight.py      what was seen at one look, and (pure) what differs between two of them
    events.py     the schemas on Jupyter's event bus
    metrics.py    figures on the server's /metrics

A door: it holds no state that matters, no marketplace key, and no token of the broker or of a cluster goes through it
to the browser.
"""
