"""Asks /healthz all the time: `python -m tests.faults.probe PORT`. Each line of its output is when
a question was asked, on the host's monotonic clock, and how long the answer took; both seconds."""

import http.client
import sys
import time

PAUSE_S = 0.005


def main(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    while True:
        asked = time.monotonic()
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200
        print(asked, time.monotonic() - asked, flush=True)
        time.sleep(PAUSE_S)


if __name__ == "__main__":
    main(int(sys.argv[1]))
