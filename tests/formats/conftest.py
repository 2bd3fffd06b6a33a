import multiprocessing
import os
import sys
from multiprocessing import forkserver

import pytest

from . import workers


@pytest.fixture(scope="session")
def processes():
    """Starts processes quickly: they fork from a server that has imported everything, and no more.

    (A process with threads, as pytest is after torch has computed, should not be forked.)
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([workers.__name__])
    with pytest.MonkeyPatch.context() as patch:  # the server knows no other way to find modules
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        forkserver.ensure_running()
    return context
