"""The one line of a runner's pages that says what failed."""

import grpc
import pytest

from epithre_beam.pipelines.jobs.runner_errors import message_of

PYTHON = """Pipeline job-001 failed in state FAILED: bundle inst003 stage-004 failed:Traceback (most recent call last):
  File "/usr/lib/python3.11/site-packages/apache_beam/runners/worker/sdk_worker.py", line 318, in _execute
    response = task()
               ^^^^^^
  File "/usr/lib/python3.11/job.py", line 3, in work
    raise ValueError("prices [in cents] must be whole")
ValueError: prices [in cents] must be whole [while running 'Units/EmbedUnits-ptransform-71']

]"""
JAVA = """java.util.concurrent.CompletionException: org.apache.flink.runtime.client.JobSubmissionException: Failed
	at java.base/java.util.concurrent.CompletableFuture.encodeThrowable(CompletableFuture.java:314)
Caused by: org.apache.flink.runtime.JobException: Cannot instantiate the coordinator
	at org.apache.flink.runtime.executiongraph.ExecutionJobVertex.initialize(ExecutionJobVertex.java:229)
	... 4 more
Caused by: java.io.IOException: Insufficient number of network buffers: required 512, but only 426 available
	at org.apache.flink.runtime.io.network.buffer.NetworkBufferPool.internalCreate(NetworkBufferPool.java:495)
	... 20 more
>"""
CALL = """<_MultiThreadedRendezvous of RPC that terminated with:
	status = StatusCode.UNAVAILABLE
	details = "failed to connect to all addresses; last error: \\"refused\\""
	debug_error_string = "UNKNOWN:Error received from peer {grpc_status:14}"
>"""


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (PYTHON, "ValueError: prices [in cents] must be whole"),
        (JAVA, "java.io.IOException: Insufficient number of network buffers: required 512, but only 426 available"),
        (CALL, 'failed to connect to all addresses; last error: \\"refused\\" (UNAVAILABLE)'),
        ("Pipeline failed.", "Pipeline failed."),
        ("Errors: [\n\tthe worker pool is gone\n]", "the worker pool is gone"),
        ("The environment needs Docker.\n]\n>\n}", "The environment needs Docker."),
        ("KeyError: 'id'\n>", "KeyError: 'id'"),
        ("ConnectionResetError\n]", "ConnectionResetError"),
        ("beam.SomeTimeout: no bundle came back\n  at x.y.Z(Some.java:1)\n]", "beam.SomeTimeout: no bundle came back"),
        ("]", "]"),
        ("", "RuntimeError"),
    ],
)  # fmt: skip
def test_it_is_the_line_that_says_something(text, line):
    assert message_of(RuntimeError(text)) == line


def test_it_is_short():
    assert len(message_of(RuntimeError("words " * 1000))) == 300


def test_a_real_call_to_a_server_that_is_not_there_tells_why():
    with grpc.insecure_channel("localhost:1") as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/x/y")(b"", timeout=10)
    assert message_of(caught.value).endswith("(UNAVAILABLE)")
    assert len(message_of(caught.value)) > 30
