"""How a command ends that a signal interrupts while a C module is loaded, which makes an ImportError of it."""

from __future__ import annotations

import pytest
import typer

from dllama_zmq.cli.exit_codes import with_exit_codes


def ending_of(cause: BaseException) -> BaseException:
    def command() -> None:
        raise ImportError("initialization failed") from cause

    with pytest.raises((typer.Exit, SystemExit)) as ended:
        with_exit_codes(command)()
    return ended.value


def test_ctrl_c_ends_it_with_130() -> None:
    ended = ending_of(KeyboardInterrupt())
    assert isinstance(ended, typer.Exit)
    assert ended.exit_code == 130


def test_another_signal_ends_it_as_that_signal() -> None:
    terminated = SystemExit(143)
    assert ending_of(terminated) is terminated


def test_any_other_cause_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    ended = ending_of(OSError("a file is missing"))
    assert isinstance(ended, typer.Exit)
    assert ended.exit_code == 1
    assert "initialization failed" in capsys.readouterr().err
