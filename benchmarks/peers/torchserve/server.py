"""TorchServe: POST the float32 bytes of a row, as application/octet-stream, to /predictions/model.

Tuned as its pages on performance and configuration say: a worker process per core, batches with the shortest delay that
it takes (1 ms; 0 means 100), its logs and metrics off. Java is started here as `torchserve --start` starts it, which
would keep its process id in a file that all TorchServes of a machine share.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import ts
from peer import HOST, MAX_BATCH, PORT, WORKERS

LOG4J = """<Configuration status="warn">
  <Appenders><Console name="console"><PatternLayout pattern="%d %p %c %m%n"/></Console></Appenders>
  <Loggers><Root level="warn"><AppenderRef ref="console"/></Root></Loggers>
</Configuration>
"""


def configure(folder: Path) -> Path:
    """Put the model and the configuration into `folder`, and return the configuration's path."""
    model = folder / "store" / "model"
    (model / "MAR-INF").mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("service.py"), model)
    manifest = {"runtime": "python", "model": {"modelName": "model", "handler": "service.py", "modelVersion": "1.0"}}
    (model / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(manifest))
    (folder / "log4j2.xml").write_text(LOG4J)
    served = {"defaultVersion": True, "marName": "model", "minWorkers": WORKERS, "maxWorkers": WORKERS}
    served |= {"batchSize": MAX_BATCH, "maxBatchDelay": 1, "responseTimeout": 120}
    settings = {
        "inference_address": f"http://{HOST}:{PORT}",
        "management_address": f"http://{HOST}:{PORT + 1}",
        "metrics_address": f"http://{HOST}:{PORT + 2}",
        "grpc_inference_address": HOST,
        "grpc_inference_port": PORT + 3,
        "grpc_management_address": HOST,
        "grpc_management_port": PORT + 4,
        "model_store": folder / "store",
        "load_models": "model=model",
        "models": json.dumps({"model": {"1.0": served}}),
        "disable_token_authorization": "true",
        "disable_system_metrics": "true",
        "job_queue_size": 1000,
    }
    path = folder / "config.properties"
    path.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    return path


def main() -> None:
    """Become TorchServe's Java process."""
    folder = Path(tempfile.mkdtemp(prefix="torchserve-"))
    home = Path(ts.__file__).parent
    os.environ |= {"LOG_LOCATION": str(folder), "METRICS_LOCATION": str(folder)}
    java = ["java", f"-Dmodel_server_home={home.parent}", f"-Dlog4j.configurationFile=file://{folder}/log4j2.xml"]
    server = ["-cp", f"{home}/frontend/*", "org.pytorch.serve.ModelServer", "--python", sys.executable]
    os.execvp("java", [*java, *server, "-f", str(configure(folder)), "-ncs"])


if __name__ == "__main__":
    main()
