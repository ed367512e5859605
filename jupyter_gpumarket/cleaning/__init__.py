"""What a node sends to be displayed is data from a stranger's machine; here it is made fit to be shown.

JupyterLab trusts whatever an executed cell prints, runs its scripts and loads its images, so a node's HTML would act as
the user. Everything passes an allow-list: MIME types, HTML tags and attributes, escape sequences, display ids, amounts.
Pure functions of bytes and text: no I/O, no clock, no IPython. `messages.MessageCleaner` is the one entry for a run's
messages; the other modules each know one format.
"""

from jupyter_gpumarket.cleaning.bundles import CleanBundle, clean_bundle
from jupyter_gpumarket.cleaning.messages import (
    Clear,
    Display,
    Failure,
    MessageCleaner,
    Shown,
    Stream,
    Truncated,
)
from jupyter_gpumarket.cleaning.text import clean_text

__all__ = [
    "CleanBundle",
    "Clear",
    "Display",
    "Failure",
    "MessageCleaner",
    "Shown",
    "Stream",
    "Truncated",
    "clean_bundle",
    "clean_text",
]
