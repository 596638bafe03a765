"""Twenty requests to /a and /b in turn over one connection; prints which endpoint answered each.

Run as a program of its own inside a workload: `python probe.py ADDRESS:PORT HOST`.
"""

import http.client
import sys


def main(target: str, host: str) -> None:
    """Ask, and print one word an answer: the endpoint's name, or the status when it is not 200."""
    address, _, port = target.rpartition(":")
    connection = http.client.HTTPConnection(address.strip("[]"), int(port), timeout=5)
    answers = []
    for number in range(20):
        connection.request("GET", "/b" if number % 2 else "/a", headers={"Host": host})
        response = connection.getresponse()
        body = response.read().decode(errors="replace")
        answers.append(body.partition('"endpoint":"')[2][:1] if response.status == 200 else str(response.status))
    print(*answers)


if __name__ == "__main__":
    main(*sys.argv[1:3])
