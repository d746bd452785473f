from observed import facts, host, needs

from ftplan.launcher.preflight.checks import judge
from ftplan.launcher.preflight.facts import Disk
from ftplan.launcher.preflight.findings import Finding, Status, errors, worst
from ftplan.launcher.preflight.host_checks import check_cores, check_disk, check_limits, check_ram
from ftplan.units import GIB, MIB

OK, UNKNOWN, WARNING, ERROR = Status.OK, Status.UNKNOWN, Status.WARNING, Status.ERROR


def statuses(check, of, wanted=None):
    return [finding.status for finding in check(of, wanted)]


def test_a_good_machine_has_nothing_to_mend():
    for found in (judge(facts(), needs()), judge(facts())):
        assert {finding.status for finding in found} == {OK}
        assert not any(finding.fix for finding in found)


def test_ram_that_can_be_had_now():
    assert statuses(check_ram, facts(), needs(host_bytes=60 * GIB)) == [OK]
    (found,) = check_ram(facts(), needs(host_bytes=60 * GIB + 1))
    assert found.status is ERROR
    assert found.figures == {"needed_bytes": 60 * GIB + 1, "available_bytes": 60 * GIB}
    assert statuses(check_ram, facts(host=host(ram_available_bytes=MIB))) == [OK]


def test_disk_holds_one_checkpoint_more_than_are_kept_and_the_result():
    # Three of 3 GiB and a result of 1 GiB.
    assert statuses(check_disk, facts(disk=Disk("/data", 10 * GIB)), needs()) == [OK]
    (found,) = check_disk(facts(disk=Disk("/data", 10 * GIB - 1)), needs())
    assert found.status is ERROR
    assert found.figures["needed_bytes"] == 10 * GIB
    assert found.fix == "free some space, name another --run-dir, or keep fewer: --keep 1"
    (found,) = check_disk(facts(disk=Disk("/data", GIB)), needs(keep=1))
    assert found.fix == "free some space, name another --run-dir"


def test_checkpoints_that_are_there_are_not_counted_twice():
    assert statuses(check_disk, facts(disk=Disk("/data", 4 * GIB, held_bytes=6 * GIB)), needs()) == [OK]
    assert statuses(check_disk, facts(disk=None), needs()) == []
    assert statuses(check_disk, facts()) == [OK]


def test_limits_that_several_ranks_run_into():
    assert statuses(check_limits, facts(), needs()) == []
    small = facts(host=host(shm_bytes=64 * MIB))
    (found,) = check_limits(small, needs())
    assert (found.check, found.status) == ("shared memory", WARNING)
    assert "--shm-size" in found.fix
    assert statuses(check_limits, small, needs(card_bytes=(GIB,))) == []
    assert [finding.check for finding in check_limits(facts(), needs(nodes=2))] == ["locked memory"]
    assert statuses(check_limits, facts(host=host(locked_bytes=None, shm_bytes=None)), needs(nodes=2)) == []
    (found,) = check_limits(facts(host=host(open_files=1024)), None)
    assert (found.check, found.status, found.fix) == ("open files", WARNING, "ulimit -n 65536")


def test_every_rank_has_a_core():
    assert statuses(check_cores, facts(host=host(cores=2)), needs()) == []
    assert statuses(check_cores, facts(host=host(cores=1)), needs()) == [WARNING]


def test_the_gravest_status_counts():
    found = [Finding("a", status, "") for status in (WARNING, OK, ERROR, UNKNOWN)]
    assert worst(found) is ERROR
    assert worst(found[:2]) is WARNING
    assert worst([]) is OK
    assert errors(found) == (found[2],)
