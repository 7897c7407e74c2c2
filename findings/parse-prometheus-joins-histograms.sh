#!/usr/bin/env bash
# parse-prometheus-text-format 1.1.1 (JavaScript): of the histograms of two models only the last one is read.
#
# The package turns the page of metrics of a server into objects. vLLM and other servers give each
# histogram and summary a label with the name of the model, and one series for each model or engine. The
# package keeps labels of counters and gauges. Of a histogram or summary it drops all labels but `le` and
# `quantile`, and puts all series into one object. A bucket of the last model replaces that of the one
# before, the sum and the count are lost, and quantiles that only one model has stay next to those of
# another. A percentile of the latency computed from it belongs to one model, or to none. The README shows
# histograms without labels only. Nothing warns. Pull request 8, of 2019, is open. The script needs Node.js.
#
# Seen (series of the page -> what is read):
#   counter, small 100, large 9
#     -> 100 {"model_name":"small"}, 9 {"model_name":"large"}
#   histogram, small 90 of 100 within 0.1 s, sum 6; large 0 of 9, sum 40
#     -> {"buckets":{"0.1":"0","+Inf":"9"}}
#   histogram without labels, 90 of 100 within 0.1 s, sum 6
#     -> {"buckets":{"0.1":"90","+Inf":"100"},"count":"100","sum":"6"}
#   summary, small 0.5: 4, 0.9: 5; large 0.5: 60
#     -> {"quantiles":{"0.5":"60","0.9":"5"}}
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm install --silent --no-fund --no-audit --prefix "$work" parse-prometheus-text-format@1.1.1 \
  > npm.log 2>&1 || { cat npm.log; exit 1; }
cat >read.mjs <<'JAVASCRIPT'
import parse from "parse-prometheus-text-format";
import assert from "assert";

const page = `# TYPE requests_total counter
requests_total{model_name="small"} 100
requests_total{model_name="large"} 9
# TYPE ttft_seconds histogram
ttft_seconds_bucket{le="0.1",model_name="small"} 90
ttft_seconds_bucket{le="+Inf",model_name="small"} 100
ttft_seconds_sum{model_name="small"} 6
ttft_seconds_count{model_name="small"} 100
ttft_seconds_bucket{le="0.1",model_name="large"} 0
ttft_seconds_bucket{le="+Inf",model_name="large"} 9
ttft_seconds_sum{model_name="large"} 40
ttft_seconds_count{model_name="large"} 9
# TYPE plain_seconds histogram
plain_seconds_bucket{le="0.1"} 90
plain_seconds_bucket{le="+Inf"} 100
plain_seconds_sum 6
plain_seconds_count 100
# TYPE wait_seconds summary
wait_seconds{quantile="0.5",model_name="small"} 4
wait_seconds{quantile="0.9",model_name="small"} 5
wait_seconds{quantile="0.5",model_name="large"} 60
`;
const read = Object.fromEntries(parse(page).map((family) => [family.name, family.metrics]));
for (const [name, metrics] of Object.entries(read)) console.log(name, JSON.stringify(metrics));
assert.deepEqual(read.requests_total, [
  { value: "100", labels: { model_name: "small" } },
  { value: "9", labels: { model_name: "large" } },
]);
assert.deepEqual(read.plain_seconds, [{ buckets: { 0.1: "90", "+Inf": "100" }, count: "100", sum: "6" }]);
assert.deepEqual(read.ttft_seconds, [{ buckets: { 0.1: "0", "+Inf": "9" } }], "changed");
assert.deepEqual(read.wait_seconds, [{ quantiles: { 0.5: "60", 0.9: "5" } }], "changed");
JAVASCRIPT
node read.mjs
