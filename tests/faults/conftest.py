"""A workplace to break, and the command line that must say so."""

import pytest

from distillery.cli import main


@pytest.fixture
def refused(capsys):
    """Run a command that must end with exit code 2 and one line, and return the line."""

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        lines = [line for line in captured.err.splitlines() if line.startswith("distillery: ")]
        assert ended.value.code == 2, captured.err
        assert len(lines) == 1
        assert "Traceback" not in captured.err
        assert len(lines[0]) < 600
        return lines[0]

    return run
