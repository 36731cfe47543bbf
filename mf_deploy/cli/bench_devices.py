"""mf-bench --devices: what --device can name on this machine now."""

from mf_deploy.errors import MfDeployError


def print_devices() -> None:
    """One line a device: its name, the kind of its results, and what it is; then what is missing."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from mf_deploy.benchmarks.machine import this_machine
    from mf_deploy.cli.command import console
    from mf_deploy.runtimes.arm import CPUS, DEVICE_PREFIX

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for header in ("--device", "kind", "what it is"):
        table.add_column(header, overflow="fold")
    host = this_machine()
    phones, problem = _phones()
    rows = [(host.name, "host", f"{host.cpu}, {host.cores} cores, {host.os}"), *phones]
    lab = _problem_of_lab()
    for name, cpu in CPUS.items():
        rows.append((DEVICE_PREFIX + name, "emulated", f"instruction counts; {cpu.stands_for}{lab}"))
    for row in rows:
        table.add_row(*map(escape, row))
    out = console()
    out.print(table)
    if problem:
        out.print(problem, markup=False, soft_wrap=True)


def _phones() -> tuple[list[tuple[str, str, str]], str]:
    """A row for each phone that adb lists, and why there is none."""
    from mf_deploy.benchmarks.devices import android
    from mf_deploy.benchmarks.devices.adb_link import SWITCH_ON, Phone, attached

    rows = []
    try:
        found = attached()
        for of in found:
            if of.state != "device":
                rows.append((of.name, "device", f"{of.state}: {of.fix}"))
                continue
            told = Phone(of.serial).shell(android.DESCRIBE)
            info, virtual = (
                android.device_info(of.serial, told),
                android.is_emulated(android.properties(told)),
            )
            what = f"{info.label}, {info.cores} cores, {info.os}"
            rows.append((of.name, "emulated" if virtual else "device", what))
    except MfDeployError as error:
        return rows, str(error)
    return rows, "" if found else f"No Android phone is attached. {SWITCH_ON}"


def _problem_of_lab() -> str:
    from mf_deploy.runtimes.arm.lab import open_lab

    try:
        open_lab()
    except MfDeployError as error:
        return f" ({error.fix})"
    return ""
