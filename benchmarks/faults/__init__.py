"""What becomes of requests when parts of a cluster are killed, frozen or missing: real signals to real processes.

model.py     the model that is served: its cost is its own, and one input crashes whoever computes it
traffic.py   requests at their times, each answer checked
house.py     a cluster of three nodes that serves it
rows.py      a fault each, and what is to be reached
step.py      a load that rises and falls
apart.py     those that need a cluster of another kind
"""
