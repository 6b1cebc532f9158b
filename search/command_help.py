"""How the help is laid out, and its longer parts: typical use, exit codes, and what each command prints."""

from __future__ import annotations

import argparse
import textwrap

from search.study.wrapping import wrapped

MEMBER = (
    "goal (meets the goal best), knee (best trade-off), the number of a trial, or 'max NAME [where NAME<=VALUE and "
    "...]' with any column of the front's table (also min, <, >, >=, =)"
)
GOAL_HELP = (
    "limits in words, separated by commas, such as '4x smaller, 2x faster, lose at most 1 point'; kept with the study"
)
IO_HELP = (
    "inputs and outputs of the file: float32, int8 or uint8, and nchw or nhwc, such as uint8,nhwc (default: what "
    "network and runtime have); scales and zero points are in verification.json"
)
SIZES_HELP = (
    "heights and widths of images that the file takes besides the study's own, such as 64x64,96x128: an entry point "
    "for each, which share the weights (LiteRT, ExecuTorch)"
)
WORKERS_HELP = "processes that search together (default: 1)"
KEEP_HELP = "gigabytes that the study's folder may take; weights are removed for it, never those of the front; kept too"
ARTIFACTS_HELP = (
    "store to which workers without a shared folder upload trained weights, and from which all commands download them: "
    "file:///folder, s3://bucket/prefix, gs://bucket/prefix; kept with the study"
)
TYPICAL_USE = """\
typical use:
  slimfront init                              write a study of your own
  slimfront inspect studies/digits.py:study   what can be compressed
  slimfront run studies/digits.py:study       search and print the front
  slimfront report studies/digits.py:study    pictures and an interactive page
  slimfront confirm studies/digits.py:study   longer training, the test split
  slimfront export studies/digits.py:study    a verified file of one network
slimfront COMMAND --help explains a command; the documentation shows how to write a study by hand."""
EXIT_CODES = """\
exit codes:
  0    all went well
  1    a file failed its verification
  2    an error; the last line says what to do
  130  stopped by Ctrl-C or SIGTERM; the same command continues"""
VERBOSE_HELP = (
    "print more: each trial with its plan, values, time and reason, each verified file, each training of a "
    "confirmation, all layers of `inspect`"
)
FORMATS_HELP = (
    "format of the results (default: table); csv and json have all digits, and all else goes to standard error"
)
ALL_HELP = "show every layer, and the layers that each reason holds for"
COMPLETION_EXAMPLES = """\
examples:
  eval "$(slimfront completion bash)"          in ~/.bashrc
  slimfront completion zsh > ~/.zfunc/_slimfront
  slimfront completion fish > ~/.config/fish/completions/slimfront.fish"""
ROWS = (
    "fields of --format csv and json, a row for the teacher and for each member: trial; each objective by its name, "
    "such as size_bytes; NAME_of_teacher and NAME_lost for limits relative to the teacher; predicted_NAME; measured on "
    "the file, and empty if it is not verified: file_METRIC, agreement_percent, file_bytes, file_latency_ms, "
    "latency_ratio; file_front, file_feasible and feasible (yes or no); plan, in words."
)
# What follows the example in the help of a command.
PRINTED = {
    "inspect": "fields of --format csv and json, a row for each layer: layer, kind, shape, macs_percent, and a field "
    'for each axis by its name: what it can choose, or "no: " and the reason.',
    "run": ROWS,
    "worker": "It prints no results, only messages.",
    "front": ROWS,
    "report": "fields of --format json: folder, files (their names in it); of csv: file.",
    "confirm": "fields of --format csv and json, a row for the teacher and for each member: trial; n, the number of "
    "trainings; each cost by its name; validation_METRIC and test_METRIC, as mean ± standard deviation; kept (yes or "
    "no); plan, in words. With --seeds 0: the fields of `front`.",
    "export": "fields of --format json: folder, files (their names in it), verification (the content of "
    "verification.json, such as trial, METRIC_file, METRIC_torch, agreement_percent, file_bytes, latency); of csv: "
    "folder, and the numbers of verification.json, such as latency_cpu_ms.",
}


class Layout(argparse.RawDescriptionHelpFormatter):
    """The layout of the help: lines end between words, and texts keep their paragraphs."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return textwrap.indent(wrapped(text, width, indent=""), indent)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_long_words=False, break_on_hyphens=False)
