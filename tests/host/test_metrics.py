"""metrics.jsonl through kills and damage."""

import json

from rcsd_jax.host.metrics import MetricWriter, read_metrics


def test_a_resumed_run_drops_its_later_rows_and_keeps_the_others(tmp_path):
    writer = MetricWriter(tmp_path, first_step=0)
    for step in range(4):
        writer.write(step, {"loss": float(step)})
    writer.close()
    lines = (tmp_path / "metrics.jsonl").read_bytes().split(b"\n")
    damaged = [lines[0], b'{"step": 1, "lo', b"[1]", b"\xff", *lines[2:4], b'{"loss": 1.0}', b'{"step": 9']
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(damaged))
    writer = MetricWriter(tmp_path, first_step=3)
    writer.write(3, {"loss": 7.0})
    writer.close()
    assert read_metrics(tmp_path) == [{"step": s, "loss": v} for s, v in ((0, 0.0), (2, 2.0), (3, 7.0))]
    assert all(json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
