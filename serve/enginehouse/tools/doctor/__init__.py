"""The doctor: what nodes have and expose, and what is wrong with it. Knows no Ray.

probe.py     one node as plain data, gathered on that node
node.py      findings about one node
files.py     the files that only their user may have
cluster.py   findings about the nodes together, and about each as a member of its cluster
"""

from __future__ import annotations

from enginehouse.tools.doctor.cluster import ANSWER_S, Member, Survey, judge_cluster, judge_member
from enginehouse.tools.doctor.finding import Finding
from enginehouse.tools.doctor.node import judge_node
from enginehouse.tools.doctor.probe import PORTS, probe_from_worker, probe_node

__all__ = [
    "ANSWER_S",
    "PORTS",
    "Finding",
    "Member",
    "Survey",
    "judge_cluster",
    "judge_member",
    "judge_node",
    "probe_from_worker",
    "probe_node",
]
