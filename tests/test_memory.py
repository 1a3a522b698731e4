"""limits.py: how much memory there is, and what of a text goes into one line."""

import pytest

from capsnet import memory as limits


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A function that writes the files in which a Linux says what there is."""

    def write(**files):
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/").replace("_dot_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    monkeypatch.setattr(limits, "ROOT", tmp_path)
    write(proc__meminfo="MemTotal: 99 kB\nMemAvailable: 50 kB\n")
    return write


def test_the_machine_alone(system):
    assert limits.available_memory() == 50 * 1024


@pytest.mark.parametrize(("limit", "available"), [(60, 20), (30, 0), (10**6, 50)])
def test_a_limit_of_the_process(system, monkeypatch, limit, available):
    resource = pytest.importorskip("resource")
    system(proc__self__status="Name: python\nVmSize: 40 kB\n")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit * 1024, -1))
    assert limits.available_memory() == available * 1024


def test_the_limit_of_this_process_is_seen(monkeypatch):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2**50, 2**50))
    (left,) = limits._of_process()
    assert 2**50 - 2**44 < left < 2**50


@pytest.mark.parametrize(
    ("limit", "available"),
    [("max", 51200), ("40000", 40000 - 30000 + 700), ("20000", 0), ("", 51200)],
)
def test_the_container_of_version_2(system, limit, available):
    system(
        proc__self__cgroup="0::/a/b\n",
        **{
            "sys__fs__cgroup__a__memory_dot_max": f"{limit}\n",
            "sys__fs__cgroup__a__memory_dot_current": "30000\n",
            "sys__fs__cgroup__a__memory_dot_stat": "active_file 300\n"
            "inactive_file 400\nfile 5000\n",
            "sys__fs__cgroup__a__b__memory_dot_max": "max\n",
            "sys__fs__cgroup__a__b__memory_dot_current": "1\n",
        },
    )
    assert limits.available_memory() == available


def test_the_container_of_version_1(system):
    folder = "sys__fs__cgroup__memory__memory_dot_"
    system(
        proc__self__cgroup="3:cpu:/x\n2:memory:/docker/not visible here\n",
        **{
            f"{folder}limit_in_bytes": "40000\n",
            f"{folder}usage_in_bytes": "30000\n",
            f"{folder}stat": "inactive_file 1\ntotal_inactive_file 500\n",
        },
    )
    assert limits.available_memory() == 40000 - 30000 + 500


def test_other_systems_do_not_say(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "ROOT", tmp_path)
    assert limits.available_memory() is None
    limits.check_memory(10**18, "the images")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("straße, 猫: a b", "straße, 猫: a b"),
        ("two\nlines\r\nor three", "two lines or three"),
        ("\x1b[2J\x9b\0\udc80", "\\x1b[2J\\x9b\\x00\\udc80"),
    ],
)
def test_one_line_holds_nothing_that_a_terminal_obeys(text, line):
    assert limits.one_line(text) == line
