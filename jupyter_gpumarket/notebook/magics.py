"""`%%gpu` and `%gpu`: the arguments, and one place where errors get their short form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, cell_magic, line_magic, magics_class
from IPython.core.magic_arguments import ArgDecorator, magic_arguments

from jupyter_gpumarket.errors import BadRequest, GpuMarketError
from jupyter_gpumarket.notebook.commands import Commands
from jupyter_gpumarket.notebook.failures import shown_short
from jupyter_gpumarket.notebook.kernel import Notebook
from jupyter_gpumarket.notebook.options import add_cell_arguments, cell_options, split
from jupyter_gpumarket.notebook.running import CellRunner


class _Arguments(ArgDecorator):
    """Adds arguments that are kept in a function, so that they exist once."""

    def __init__(self, add: Callable[[Any], None]) -> None:
        self._add = add

    def add_to_parser(self, parser: Any, group: Any) -> None:
        """Called by IPython when it builds the magic's parser."""
        self._add(group or parser)


@magics_class
class GpuMagics(Magics):
    """The magics of one shell."""

    def __init__(self, shell: Any, notebook: Notebook | None = None) -> None:
        super().__init__(shell)
        self.notebook = notebook or Notebook(shell.user_ns)
        self._runner = CellRunner(self.notebook, shell)
        self._commands = Commands(self.notebook, shell, self._runner)

    @magic_arguments()
    @_Arguments(add_cell_arguments)
    @cell_magic("gpu")
    def run_cell(self, line: str, cell: str) -> Any:
        """Run this cell on a rented GPU; rent one if there is none yet.

        Variables stay on the node between cells; -i brings local ones in, -o brings results back.
        Under the cell one line tells node, time and cost. Ctrl-C interrupts on the node.
        `%gpu help` lists what else there is.
        """
        return self._shortly(lambda: self._runner.run(cell_options(self._parsed(line), self.notebook.settings), cell))

    @line_magic("gpu")
    def command(self, line: str) -> Any:
        """Nodes, offers and costs of this notebook: `%gpu help` lists the commands.

        %gpu offers | rent | cluster | sync | status | release | cost | attach | logs | extend | budget | config
        %gpu doctor | help
        """
        return self._shortly(lambda: self._commands.run(split(line)))

    def _parsed(self, line: str) -> Any:
        try:
            return self.run_cell.parser.parse_args(split(line))
        except UsageError as error:
            raise BadRequest(f"%%gpu: {error}; `%%gpu?` tells what it takes") from None

    def _shortly(self, work: Callable[[], Any]) -> Any:
        """Run; errors of ours are shown as one message, without this package's stack."""
        try:
            return work()
        except (GpuMarketError, KeyboardInterrupt) as error:
            shown_short(error)
            raise
