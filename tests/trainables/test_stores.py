"""A store that fails is asked again; one that answers is not."""

import pytest

from trainables.stores import FIRST_PAUSE_S, LONGEST_PAUSE_S, is_store, open_store, patiently


class Failing:
    """An action that raises these errors in turn, and then succeeds; and the clock that its pauses move."""

    def __init__(self, *errors: Exception, takes_s: float = 0.0) -> None:
        self.errors, self.takes_s = list(errors), takes_s
        self.now, self.pauses, self.notes = 0.0, list[float](), list[str]()

    def __call__(self) -> str:
        self.now += self.takes_s
        if self.errors:
            raise self.errors.pop(0)
        return "done"

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def run(self, patience_s: float = 300.0) -> str:
        return patiently(self, self.notes.append, patience_s, self.sleep, self.clock)


def test_failures_are_followed_by_growing_pauses_and_noted_once() -> None:
    action = Failing(*[OSError("503 SlowDown")] * 8)
    assert action.run() == "done"
    assert action.pauses == [FIRST_PAUSE_S * 2**n for n in range(6)] + [LONGEST_PAUSE_S] * 2
    assert action.notes == ["503 SlowDown; trying again"]


def test_patience_counts_from_the_first_failure_and_ends() -> None:
    # Transfers of 200 s that break at their end are repeated.
    assert Failing(OSError("broken"), OSError("broken"), takes_s=200).run() == "done"
    action = Failing(*[OSError(f"failure {number}") for number in range(100)])
    with pytest.raises(OSError, match="failure"):
        action.run(patience_s=60)
    assert 45 < action.now <= 60


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "No such file"),
        PermissionError(13, "Permission denied"),
        OSError("When listing objects under key 'a/': AWS Error ACCESS_DENIED during ListObjectsV2 operation: Access Denied"),
        OSError("AWS Error NO_SUCH_BUCKET during ListObjectsV2 operation: The specified bucket does not exist"),
        OSError("AWS Error SIGNATURE_DOES_NOT_MATCH during HeadObject operation"),
        OSError("AWS Error UNKNOWN (HTTP status 400) during HeadObject operation: No response body."),
        OSError("AWS Error UNKNOWN (HTTP status 301) during HeadObject operation: No response body."),
        OSError("Bucket 'photos' not found"),
        OSError("google::cloud::Status(PERMISSION_DENIED: Permanent error"),
    ],
)
def test_answers_are_raised_at_once(error: OSError) -> None:
    action = Failing(error)
    with pytest.raises(OSError) as raised:  # noqa: PT011
        action.run()
    assert raised.value is error
    assert action.pauses == []


@pytest.mark.parametrize(
    "message",
    [
        "AWS Error SLOW_DOWN during GetObject operation: Please reduce your request rate.",
        "AWS Error UNKNOWN (HTTP status 503) during HeadObject operation: No response body.",
        "AWS Error UNKNOWN (HTTP status 429) during HeadObject operation: No response body.",
        "AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 52, Server returned nothing",
        "AWS Error NO_SUCH_UPLOAD during CompleteMultipartUpload operation: The upload may have been completed.",
        "google::cloud::Status(UNAVAILABLE: Connection reset)",
    ],
)
def test_what_passes_is_tried_again(message: str) -> None:
    assert Failing(OSError(message)).run() == "done"


def test_addresses_are_told_from_folders() -> None:
    assert [is_store(place) for place in ("s3://bucket/folder", "gs://bucket", "/data", "data:images")] == [
        True,
        True,
        False,
        False,
    ]
    with pytest.raises(ValueError, match=r"'ftp://host' is no address of a store; allowed: s3://, gs://"):
        open_store("ftp://host")
