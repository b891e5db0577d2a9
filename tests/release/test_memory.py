"""A release of 100,000 images is made, sent, received and stored in flat memory on both sides."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT

SCRIPT = """
import json, pathlib, sys, tempfile
import numpy as np, psutil, threading, time, torch
from cadp_fl.config import FlowConfig
from cadp_fl.data.partition import SiteData
from cadp_fl.data.schema import Dataset, Schema
from cadp_fl.federated.releases import IncomingRelease
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.privacy.events import LatentGaussian
from cadp_fl.privacy.claims import FLOW_WEIGHTS
from cadp_fl.privacy.ledger import MemoryLedger
from cadp_fl.privacy.plan import Plan
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.release.bundle import BundleWriter
from cadp_fl.release.manifest import manifest_from_json
from cadp_fl.site.protocol import Request
from cadp_fl.site.requests import ReleaseRequest
from cadp_fl.site.site import Site
from cadp_fl.weights import get_weights

torch.set_num_threads(1)
count, folder = int(sys.argv[1]), pathlib.Path(sys.argv[2])
schema = Schema(name="x", shape=(1, 28, 28), classes=("a", "b"))
records = Dataset(schema, np.zeros((count, 1, 28, 28), np.uint8) + 7, np.arange(count) % 2)
config = FlowConfig(dense={"blocks": 1, "width": 8})
event = LatentGaussian(stage="release", clip_norm=2.0, noise_std=8.0)
site = Site("north", SiteData(records, records.select(np.arange(2))), ledger=MemoryLedger(),
            noise=NoiseSource.from_seed(1), device=torch.device("cpu"), outbox=folder / "outbox", simulation=True)
site.call(Request("reserve", {"plans": [Plan("m", (FLOW_WEIGHTS, event), 1e-7).to_json()]}))
settings = ReleaseRequest(method="m", flow=config, seed=0, mechanism="gaussian", event=event, latent_dims=16,
                          shrinkage="typical-set", shard_records=4096).model_dump(mode="json")
weights = get_weights(ConditionalFlow(config, schema.shape, 2, seed=0))
process, peak, done = psutil.Process(), [0], threading.Event()
before = process.memory_info().rss
def watch():
    while not done.is_set():
        peak[0] = max(peak[0], process.memory_info().rss)
        time.sleep(0.01)
watcher = threading.Thread(target=watch)
watcher.start()
manifest = manifest_from_json(site.call(Request("release", settings, weights)).content["manifest"])
largest = 0
with BundleWriter(folder / "north") as writer:
    incoming = IncomingRelease(manifest, writer)
    while not incoming.is_whole:
        reply = site.call(incoming.request())
        largest = max(largest, sum(array.nbytes for array in reply.arrays.values()))
        incoming.add(reply)
    writer.finish(manifest)
done.set()
watcher.join()
print(json.dumps({"records": manifest.records, "grown": peak[0] - before, "largest": largest}))
"""


def measure(count, folder):
    folder.mkdir()
    finished = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(count), str(folder)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return json.loads(finished.stdout)


@pytest.mark.slow
def test_a_release_of_100_000_images_takes_no_more_memory_than_one_of_10_000(tmp_path):
    small, large = measure(10_000, tmp_path / "small"), measure(100_000, tmp_path / "large")
    assert large["records"] == 100_000
    assert large["largest"] <= 4096 * (28 * 28 + 8) * 1.01
    assert large["grown"] < 1.25 * small["grown"] + (16 << 20)
