"""Planning beyond one machine: the policy that serves, replayed over traces for fleets that nobody has at hand.

A discrete-event simulation: time is computed, nothing runs on Ray, and the same seed gives the same figures. The
ranking, the latency tables and the pace are `enginehouse`'s own code; what is around them in a router is told again in
`router.py` and `backend.py`. See "Beyond one machine" in benchmarks/README.md.
"""
