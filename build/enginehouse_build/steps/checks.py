"""What a bundle carries along so that engines that are made or loaded on other hardware can be verified there."""

from __future__ import annotations

from pathlib import Path

from enginehouse.contract import probes, tensor_file
from enginehouse.engines.recheck import CHECK_ANSWERS, CHECK_PROBES
from enginehouse.engines.usual import CHECK_REQUESTS
from enginehouse_build.reference.reference import ANSWERS, PROBES, REQUESTS

#: Paths in the bundle.
CHECKS = (CHECK_REQUESTS, CHECK_ANSWERS, CHECK_PROBES)
#: Bytes of requests, and of probes; the first request is carried whatever its size.
_BYTES = 8 << 20


def carry(source: Path, bundle: Path) -> None:
    """Write requests, answers and probes of the reference in `source` into the folder `bundle`."""
    requests, answers = tensor_file.read(source / REQUESTS), tensor_file.read(source / ANSWERS)
    kept, total = 0, 0
    for request in requests:
        total += sum(array.nbytes for array in request.values())
        if kept and total > _BYTES:
            break
        kept += 1
    (bundle / CHECK_REQUESTS).parent.mkdir()
    tensor_file.write(bundle / CHECK_REQUESTS, requests[:kept])
    tensor_file.write(bundle / CHECK_ANSWERS, answers[:kept])
    probes.write(bundle / CHECK_PROBES, probes.kept(probes.read(source / PROBES), _BYTES))
