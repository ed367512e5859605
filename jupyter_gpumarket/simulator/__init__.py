"""Stand-ins for marketplaces: each speaks one marketplace's HTTP API on loopback and rents real hosts of a pool.

faults.py    what can be made to go wrong, and for how many calls
figures.py   prices and machines seen on the real markets, with their sources
relay.py     a TCP port of a rental's own, which can be moved or cut
yard.py      the rentals: machines of the pool behind every stand-in, their lives, and what they cost
web.py       one HTTP server per stand-in: routes, keys, faults, latency
vast.py …    one file per marketplace: its paths, words and odd habits
process.py   all stand-ins in one process: `python -m jupyter_gpumarket.simulator`
"""
