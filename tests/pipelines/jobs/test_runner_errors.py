"""The line of a runner's error that says what failed."""

import grpc
import pytest

from epithre_beam.pipelines.jobs.runner_errors import advised, message_of

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
def test_the_line_with_the_error_is_chosen(text, line):
    assert message_of(RuntimeError(text)) == line


NESTED = """bundle inst1 failed:Traceback (most recent call last):
  File "a.py", line 3, in work
    open("x")
FileNotFoundError: [Errno 2] No such file or directory: '/models/clip.pt'

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "b.py", line 4, in run
    raise RuntimeError("bundle failed") from error
RuntimeError: bundle failed [while running 'Units/EmbedUnits']
]"""
SUPPRESSED = """org.apache.beam.sdk.util.UserCodeException: java.lang.IllegalStateException: stage failed
	at org.apache.beam.sdk.util.UserCodeException.wrap(UserCodeException.java:39)
	Suppressed: java.lang.Exception: closing
		at x.Y.close(Y.java:1)
Caused by: java.lang.OutOfMemoryError: Java heap space
	at java.base/java.util.Arrays.copyOf(Arrays.java:3537)
	... 12 more
"""
SPARK = """Exception in thread "main" org.apache.spark.SparkException: Aborted: java.net.UnknownHostException: registry
	at java.base/java.net.InetAddress.getAllByName(InetAddress.java:1)

Driver stacktrace:
	at org.apache.spark.scheduler.DAGScheduler.failJobAndIndependentStages(DAGScheduler.scala:2844)
"""
INNER_CLASS = """java.lang.RuntimeException: Failed to fetch
Caused by: io.grpc.StatusRuntimeException: UNAVAILABLE: io exception
Caused by: io.netty.channel.AbstractChannel$AnnotatedConnectException: Connection refused: localhost/127.0.0.1:8099
"""
SILENT_CALL = """<_InactiveRpcError of RPC that terminated with:
	status = StatusCode.CANCELLED
	details = ""
	debug_error_string = "UNKNOWN:Error received from peer"
>"""
CALL_WITH_TRACEBACK = r"""<_InactiveRpcError of RPC that terminated with:
	status = StatusCode.UNKNOWN
	details = "Exception: Traceback (most recent call last):\n  File \"x.py\", line 3\nKeyError: 'model'"
>"""
GROUP = """  + Exception Group Traceback (most recent call last):
  |   File "a.py", line 3, in <module>
  | ExceptionGroup: unhandled errors in a TaskGroup (1 sub-exception)
  +-+---------------- 1 ----------------
    | Traceback (most recent call last):
    |   File "a.py", line 9, in work
    | ValueError: the region 'x' is unknown
    +------------------------------------
"""


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (NESTED, "FileNotFoundError: [Errno 2] No such file or directory: '/models/clip.pt'"),
        (NESTED.replace("The above exception was the direct cause of the following exception",
                        "During handling of the above exception, another exception occurred"),
         "FileNotFoundError: [Errno 2] No such file or directory: '/models/clip.pt'"),
        (SUPPRESSED, "java.lang.OutOfMemoryError: Java heap space"),
        (SPARK, "org.apache.spark.SparkException: Aborted: java.net.UnknownHostException: registry"),
        (INNER_CLASS, ("io.netty.channel.AbstractChannel$AnnotatedConnectException: Connection refused: "
                      "localhost/127.0.0.1:8099")),
        (SILENT_CALL, "the call failed (CANCELLED)"),
        (CALL_WITH_TRACEBACK, "KeyError: 'model' (UNKNOWN)"),
        (GROUP, "ValueError: the region 'x' is unknown"),
        ("java.io.IOException: exit code 125. stderr: Unable\ndocker: Error response from daemon: manifest unknown.",
         "java.io.IOException: exit code 125. stderr: Unable"),
    ],
    ids=["cause", "during", "suppressed", "spark", "inner class", "silent call", "call", "group", "docker"],
)  # fmt: skip
def test_the_first_cause_is_chosen(text, line):
    assert message_of(RuntimeError(text)) == line


def test_an_error_without_a_message_reports_its_cause():
    outer = RuntimeError("]")
    outer.__cause__ = FileNotFoundError(2, "No such file or directory", "/models/clip.pt")
    assert message_of(outer) == "[Errno 2] No such file or directory: '/models/clip.pt'"


def test_the_line_is_short():
    assert len(message_of(RuntimeError("words " * 1000))) == 300


def test_a_grpc_call_without_a_server_reports_the_reason():
    with grpc.insecure_channel("localhost:1") as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/x/y")(b"", timeout=10)
    assert message_of(caught.value).endswith("(UNAVAILABLE)")
    assert len(message_of(caught.value)) > 30


@pytest.mark.parametrize("after", [". Also failed to fetch from Google", ". If no Internet access", "…", ""])
def test_a_failed_download_of_beam_gives_advice(after):
    url = "https://repo.maven.apache.org/beam-runners-flink-2.2-job-server-2.77.0.jar"
    found = advised(f"Unable to fetch remote job server jar at {url}: HTTP Error 404: Not Found{after}")
    assert found.startswith(
        f"Beam could not download its job server from {url} (HTTP Error 404: Not Found). Start a job"
    )
    assert advised("the worker pool is gone") == "the worker pool is gone"
