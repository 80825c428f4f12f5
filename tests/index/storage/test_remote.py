"""Driver errors are converted to a few OSErrors; errors of this package are not converted again."""

import subprocess
import sys

import pytest

from epithre_beam.configs.errors import StoreError
from epithre_beam.index.storage.remote import as_os_error


class NoCredentialsError(Exception):
    pass


NoCredentialsError.__module__ = "botocore.exceptions"


def test_driver_refusal_becomes_a_permission_error_with_advice() -> None:
    found = as_os_error(NoCredentialsError("Unable to locate credentials"), "s3://b/x")
    assert isinstance(found, PermissionError)
    assert str(found).startswith(
        "s3://b/x: access was refused (NoCredentialsError: Unable to locate credentials). Provide"
    )


def test_error_of_this_package_is_not_converted() -> None:
    with pytest.raises(StoreError) as caught:
        raise StoreError("s3://b/x was refused.") from NoCredentialsError("Unable to locate credentials")
    assert as_os_error(caught.value, "The storage") is caught.value


def test_bug_is_not_converted() -> None:
    bug = KeyError("row")
    assert as_os_error(bug, "The storage") is bug


@pytest.mark.parametrize("code", ["403", "404", "500"])
def test_driver_error_hides_signatures_in_urls(code: str) -> None:
    error = NoSuchThingError("403, message='Forbidden', url='https://me:hidden@h/c/p.jpg?sv=1&sig=hidden%2F&se=2'")
    error.code = code
    found = as_os_error(error, "https://h/c/p.jpg?X-Amz-Signature=hidden&x=1")
    assert isinstance(found, OSError)
    assert "hidden" not in str(found)
    assert "se=2" in str(found)
    assert "https://h/c/p.jpg?X-Amz-Signature=***&x=1" in str(found)


class NoSuchThingError(Exception):
    code = ""


NoSuchThingError.__module__ = "aiohttp.client_exceptions"


@pytest.mark.parametrize(
    ("url", "driver", "remedy"),
    [
        ("s3://bucket/catalog", "s3fs", "Install the extra `s3`, in the checkout: pip install"),
        ("gs://bucket/catalog", "gcsfs", "Install the extra `gcs`, in the checkout: pip install"),
        ("abfs://bucket/catalog", "adlfs", "Install the extra `azure`, in the checkout: pip install"),
        ("https://example.com/catalog", "aiohttp", "Run `pip install aiohttp`"),
    ],
)
def test_missing_driver_is_an_error_that_names_the_extra(url: str, driver: str, remedy: str) -> None:
    program = f"""
import sys
sys.modules[{driver!r}] = None  # as if it were not installed
from epithre_beam.errors import MissingDriverError
from epithre_beam.index import open_catalog
from epithre_beam.index.storage.remote import driver_class
for call in (lambda: open_catalog({url!r}), lambda: driver_class({url.partition(":")[0]!r})):
    try:
        call()
    except MissingDriverError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"{driver} is not installed. {remedy}") for line in lines), lines
