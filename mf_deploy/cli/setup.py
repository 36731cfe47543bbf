"""mf-deploy setup: prepare what cannot be installed with pip."""

import click


@click.group(name="setup")
def setup() -> None:
    """Prepare what cannot be installed with pip."""


@setup.command(name="arm")
@click.option("--force", is_flag=True, help="Make it again even if it is there.")
def arm(force: bool) -> None:
    """The ARM lab: the engines' ARM builds in emulation, for --device arm:cortex-a76 and others.

    Downloads about 70 MB into the cache folder ($MF_DEPLOY_CACHE, else ~/.cache/mf-deploy) and installs
    nothing on this system. Needs Debian or Ubuntu with qemu-user and gcc. An existing lab that fits the
    installed engines is left as it is.
    """
    from mf_deploy.runtimes.arm import CPUS, DEVICE_PREFIX
    from mf_deploy.runtimes.arm.setup import set_up

    lab = set_up(force, progress=lambda step: click.echo(f"{step} ...", err=True))
    click.echo(f"The ARM lab is ready in {lab.folder}")
    for name, cpu in CPUS.items():
        click.echo(f"  --device {DEVICE_PREFIX + name:15} {cpu.stands_for}")


@setup.command(name="web")
@click.option("--force", is_flag=True, help="Fetch them again even if they are there.")
def web(force: bool) -> None:
    """The engines of the benchmark app for browsers: ONNX Runtime Web and LiteRT.js, for mf-bench serve.

    Downloads about 45 MB with npm and keeps 80 MB in the cache folder ($MF_DEPLOY_CACHE, else
    ~/.cache/mf-deploy). Versions and digests are pinned. Phones get the files from mf-bench serve.
    """
    from mf_deploy.benchmarks.server.engines import set_up

    engines = set_up(force, progress=lambda step: click.echo(f"{step} ...", err=True))
    size = sum(file.bytes for file in engines.record.files) / 1e6
    click.echo(f"The engines for browsers are ready in {engines.folder} ({size:.0f} MB)")
    for package in engines.record.packages:
        click.echo(f"  {package.name} {package.version}, {package.licence}")


@setup.command(name="adb")
@click.option("--force", is_flag=True, help="Make it again even if it is there.")
def adb(force: bool) -> None:
    """The runner for Android phones: the engines' ARM64 builds and a small program, for --device adb.

    Downloads about 40 MB into the cache folder ($MF_DEPLOY_CACHE, else ~/.cache/mf-deploy), compiles the
    program, and installs nothing on this system. Needs Debian or Ubuntu with gcc-aarch64-linux-gnu.
    """
    from mf_deploy.benchmarks.native.runner import set_up

    runner = set_up(force, progress=lambda step: click.echo(f"{step} ...", err=True))
    size = sum(file.bytes for file in runner.files) / 1e6
    click.echo(f"The runner for phones is ready in {runner.folder} ({size:.0f} MB)")
