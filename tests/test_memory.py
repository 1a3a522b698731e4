"""memory.py: how much there is, as Linux says, and what is said if it is too little."""

import pytest

from capsnet import memory
from capsnet.errors import DataError


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A function that writes the files in which a Linux says what there is."""

    def write(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    monkeypatch.setattr(memory, "ROOT", tmp_path)
    write({"proc/meminfo": "MemTotal:  99 kB\nMemAvailable:   50 kB\n"})
    return write


def test_the_machine_alone(system):
    assert memory.available_memory() == 50 * 1024


@pytest.mark.parametrize(
    ("limit", "available"),
    [("max", 51200), ("40000", 40000 - 30000 + 700), ("20000", 0), ("99999", 51200)],
)
def test_the_limit_of_a_container(system, limit, available):
    system(
        {
            "sys/fs/cgroup/memory.max": f"{limit}\n",
            "sys/fs/cgroup/memory.current": "30000\n",
            "sys/fs/cgroup/memory.stat": "file 5000\nactive_file 300\n"
            "inactive_file 400\nworkingset_refault_file 6000\n",
        }
    )
    assert memory.available_memory() == available


@pytest.mark.parametrize("meminfo", ["MemTotal: 90 kB\n", "MemAvailable: much\n", ""])
def test_other_systems_do_not_say(system, meminfo):
    system({"proc/meminfo": meminfo})
    assert memory.available_memory() is None
    memory.check_memory(10**18, "the images")


def test_who_needs_more_than_there_is(system):
    memory.check_memory(51200, "the images")
    with pytest.raises(DataError, match="^the images need about .* --image_size"):
        memory.check_memory(51201, "the images")
