"""Maps: a cell's body run once for each of many items, over all nodes of the cluster.

    table     what is known of each item, and which node gets which: pure
    checking  results before they are kept
    seat      one node's part in a map
    live      one map: takes reports, gives items, keeps outcomes (`mapfiles`)
    store     all maps of the cluster

On disk, in maps/<map id>/: request.json, state.json, outcomes.log, and a file for each large result.
"""
