from pathlib import Path

import pytest
from pydantic import ValidationError

from orchestrator.config.sweep_config import SweepConfig, TrackingConfig, read_sweep
from trainables.config_file import ConfigError, Origin, check
from trainables.settings import without_password

SWEEP = Path(__file__).parents[2] / "search_spaces" / "digits_lt.yaml"


@pytest.mark.parametrize(
    ("override", "field", "cure"),
    [
        (
            "tracking.uri=http://someone:sesame@127.0.0.1:9/x",
            "tracking: uri",
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        ),
        ("tracking.uri=postgresql+psycopg://someone:sesame@host/db", "tracking: uri", "MLFLOW_TRACKING_URI"),
        ("tracking.uri=mysql://someone:se/same@host/db", "tracking: uri", "MLFLOW_TRACKING_URI"),
        ("tracking.uri=postgresql://host/db?user=someone&password=sesame", "tracking: uri", "MLFLOW_TRACKING_URI"),
        ("tracking.uri=ftp://someone:sesame@host/db", "tracking: uri", "MLFLOW_TRACKING_URI"),
        (
            "trial.data={source: parquet, root: 's3://KEY:sesame@bucket/images'}",
            "trial.data: root",
            "AWS_SECRET_ACCESS_KEY",
        ),
        (
            "trial.data={source: parquet, root: 's3://bucket/x?secret_key=sesame'}",
            "trial.data: root",
            "AWS_ACCESS_KEY_ID",
        ),
    ],
)
def test_a_password_in_an_address_is_refused_with_the_cure_and_not_repeated(override: str, field: str, cure: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_sweep(SWEEP, [override])
    message = str(caught.value)
    assert "sesame" not in message
    assert f"{field} is the address '" in message
    assert "holds a password" in message
    assert cure in message


def test_a_file_with_a_password_is_refused_too(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("tracking:\n  uri: postgresql://someone:sesame@host/db\n")
    with pytest.raises(
        ConfigError, match=r"sweep.yaml: tracking: uri is the address 'postgresql://\*\*\*@host/db', which holds a pass"
    ) as caught:
        read_sweep(file)
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        "http://127.0.0.1:5000/a@b",
        "https://mlflow.example.org",
        "postgresql://someone@host:5432/db",
        "sqlite:////data/x:y@z.db",
    ],
)
def test_an_address_without_a_password_is_taken(uri: str) -> None:
    assert check(TrackingConfig, {"uri": uri}, Origin("test")).uri == uri


def test_no_message_repeats_a_password() -> None:
    assert str(ConfigError("given s3://KEY:se/s@me@bucket/x, postgresql://h/d?x=1&password=sesame&y=2")) == (
        "given s3://***@bucket/x, postgresql://h/d?x=1&password=***&y=2"
    )
    assert without_password("to postgresql://u:p@h/d and s3://b/c") == "to postgresql://***@h/d and s3://b/c"
    with pytest.raises(ValidationError) as caught:
        SweepConfig.model_validate({"tracking": {"uri": 7, "experiment": ["http://u:sesame@h"]}})
    assert "sesame" not in str(caught.value)
