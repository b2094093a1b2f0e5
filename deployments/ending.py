"""The end of a process whose device, or what works on it, is broken."""

import logging
import os
from threading import Timer
from typing import NoReturn

LAST_WORDS_S = 1.0  # for the log


def end_process(log: logging.Logger, words: str, fault: BaseException) -> NoReturn:
    """Says why, and ends this process. Whoever waits for an answer of it gets Ray's
    `ActorDiedError` and can ask another replica; a broken one would refuse faster than others work,
    and so be sent the most."""
    late = Timer(LAST_WORDS_S, os._exit, (1,))  # whatever keeps the log from being written
    late.daemon = True
    late.start()
    log.critical(words, exc_info=fault)
    for handler in log.handlers:
        handler.flush()
    os._exit(1)
