"""Whether the gates of a build notice a broken artifact: graphs broken on purpose, converted and judged as ever.

models.py    small models with what real ones are made of, and rows as their users would give them
mutants.py   ways to break a graph, each with a strength
judged.py    the build's own reference, conversion and verification, with the broken graph in between
"""
