"""Counts that outlive the process that counts: a row of numbers for each thing, in a mapped file of the process.

    CACHE/counts/<node>/<process>-<n>.names    JSON lines: what the rows of the file beside it are of, see `rows`
    CACHE/counts/<node>/<process>-<n>.counts   the rows, `WIDTH` numbers each, in this machine's byte order
    CACHE/counts/<node>/dead.json              the rows of processes that have ended, added up

A process writes the first two (`ledger`), and holds a lock on the second while it lives, which the system takes
back however it ends. Whoever is asked on a node reads those of all its processes, and adds what
dead ones left to the last (`node`). So nothing is lost with a process, nor counted twice, however often one is asked.
"""
