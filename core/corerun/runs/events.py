"""Names of the journal's records, and what each of them carries.

The state of a run is the fold of its events. Every record is ``{seq, t, type, data, crc}``.

=================  ==========================================================================
type               data
=================  ==========================================================================
run_started        schema, run, job, plugin, seed, argv, versions, settings, inputs, identity, models
run_resumed        argv, versions, models, settings
stage_started      scope, title, number, goals, max_nodes
node_asked         scope, node, parent, seq, hint, attempt, counted, batch
node_done          scope, node, seq, attempt, status, score, reason, open, data
call_asked         key, node, role, purpose, model, prompt (sha256 of a blob)
call_answered      key, node, role, purpose, provider, model_requested, model_answered, text,
                   finish, usage (prompt, completion), cost_usd, price_source, latency_s,
                   attempts, booked (name in the token files); where they say something:
                   tool_calls, reasoning, degradations, requests (else 1), created, and of usage
                   reasoning, cached, estimated; from the cache: cache_hit, saved_usd
call_failed        key, node, role, purpose, model, kind, message
execution_done     key, node, attempt, label, result, code_sha256, env, limits, network, queue_s, prev
refused            what, reason, node, prev
degraded           model, feature, reason
stage_done         scope, best, nodes, good, failed, wall_s
file_made          path, bytes, sha256
metric             name, value, step
noted              name, value, scope, node: a job's own durable note
warning            message; of a clock that was set: clock_step_s
repaired           line, kept (file name of the torn tail)
paused             reason
run_done           status, exit_code, error
=================  ==========================================================================
"""

from __future__ import annotations

RUN_STARTED = "run_started"
RUN_RESUMED = "run_resumed"
STAGE_STARTED = "stage_started"
NODE_ASKED = "node_asked"
NODE_DONE = "node_done"
CALL_ASKED = "call_asked"
CALL_ANSWERED = "call_answered"
CALL_FAILED = "call_failed"
EXECUTION_DONE = "execution_done"
REFUSED = "refused"
DEGRADED = "degraded"
STAGE_DONE = "stage_done"
FILE_MADE = "file_made"
METRIC = "metric"
NOTED = "noted"
WARNING = "warning"
REPAIRED = "repaired"
PAUSED = "paused"
RUN_DONE = "run_done"

SCHEMA = "corerun.events/1"
