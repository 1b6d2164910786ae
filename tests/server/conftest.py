"""One served laguna-tiny for all tests of a file that do not end it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.serving import Local, ended, service_of


@pytest.fixture(scope="package")
def local() -> Iterator[Local]:
    with ended(service_of(limits={"max_num_seqs": 4, "max_waiting": 40})) as service:
        yield Local(service)
