"""The iOS app's project file, plists and assets, read by parsers that are not Xcode."""

from __future__ import annotations

import json
import plistlib
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pbxproj import XcodeProject

ROOT = Path(__file__).parents[1]
APP = ROOT / "ios_app"
PRODUCTS = {"executorch_llm", "backend_xnnpack", "kernels_llm", "kernels_optimized", "kernels_quantized"}


@pytest.fixture(scope="module")
def project() -> XcodeProject:
    return XcodeProject.load(str(APP / "Pocketphi.xcodeproj/project.pbxproj"))


def one(project: XcodeProject, isa: str) -> Any:
    found = project.objects.get_objects_in_section(isa)
    assert len(found) == 1
    return found[0]


def test_every_source_is_in_the_target(project: XcodeProject) -> None:
    target = one(project, "PBXNativeTarget")
    assert str(project.objectVersion) == "77"
    folders = [project.objects[key] for key in target.fileSystemSynchronizedGroups]
    assert [folder.path for folder in folders] == ["Pocketphi"]
    # A synchronized folder is in the target with all it holds, but for what an exception set takes out.
    assert not project.objects.get_objects_in_section("PBXFileSystemSynchronizedBuildFileExceptionSet")
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.swift"],
        cwd=APP,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in tracked.stdout.split():
        assert name.split("/")[0] in ("Pocketphi", "BenchmarkCore", "stubs"), name
    assert (APP / "Pocketphi/PocketphiApp.swift").read_text().count("@main") == 1


def test_every_referenced_file_exists(project: XcodeProject) -> None:
    groups = project.objects.get_objects_in_section("PBXGroup", "PBXFileSystemSynchronizedRootGroup")
    parents = {str(child): group for group in groups for child in group["children"] or []}

    def path_of(key: str) -> Path:
        parent = parents.get(key)
        own = project.objects[key]["path"]
        above = path_of(str(parent.get_id())) if parent is not None else APP
        return above / own if own else above

    references = project.objects.get_objects_in_section("PBXFileReference", "PBXFileSystemSynchronizedRootGroup")
    files = [item for item in references if item.sourceTree == "<group>"]
    assert {item.path for item in files} == {"Info.plist", "Pocketphi.entitlements", "Pocketphi"}
    for item in files:
        assert path_of(str(item.get_id())).exists(), item.path
    for configuration in project.objects.get_configurations_on_targets("Pocketphi"):
        for setting in ("INFOPLIST_FILE", "CODE_SIGN_ENTITLEMENTS"):
            assert (APP / configuration.buildSettings[setting]).is_file()
    assert (APP / one(project, "XCLocalSwiftPackageReference").relativePath / "Package.swift").is_file()


def test_every_object_is_referenced_and_every_reference_leads_somewhere(project: XcodeProject) -> None:
    text = (APP / "Pocketphi.xcodeproj/project.pbxproj").read_text()
    defined = re.findall(r"^\t\t([0-9A-F]{24})(?: /\*.*?\*/)? = \{", text, re.MULTILINE)
    assert len(defined) == len(set(defined)) > 20
    assert set(re.findall(r"\b[0-9A-F]{24}\b", text)) == set(defined)
    for key in defined:
        assert len(re.findall(rf"\b{key}\b", text)) > 1, key


def test_packages_and_versions_agree_with_the_pins(project: XcodeProject) -> None:
    pins = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    executorch = next(pin for pin in pins["dependencies"] if pin.startswith("executorch==")).split("==")[1]
    remote = one(project, "XCRemoteSwiftPackageReference")
    assert remote.repositoryURL == "https://github.com/pytorch/executorch"
    assert (remote.requirement.kind, remote.requirement.branch) == ("branch", f"swiftpm-{executorch}")
    engine = (APP / "Pocketphi/Engine/ExecuTorchEngine.swift").read_text()
    assert f'release = "{executorch}"' in engine
    products = project.objects.get_objects_in_section("XCSwiftPackageProductDependency")
    assert {item.productName for item in products} == PRODUCTS | {"BenchmarkCore"}
    for item in products:
        assert (item["package"] is None) == (item.productName == "BenchmarkCore")
    linked = {str(item.productRef) for item in project.objects.get_objects_in_section("PBXBuildFile")}
    assert linked == {str(item.get_id()) for item in products}
    configurations = project.objects.get_configurations_on_targets("Pocketphi")
    assert {item.name for item in configurations} == {"Debug", "Release"}
    for item in configurations:
        assert {"-all_load", "-lc++"} <= set(item.buildSettings["OTHER_LDFLAGS"])
        assert item.buildSettings["MARKETING_VERSION"] == pins["version"]
        assert item.buildSettings["PRODUCT_BUNDLE_IDENTIFIER"] == "org.pocketphi.bench"
    text = (APP / "Pocketphi.xcodeproj/project.pbxproj").read_text()
    assert text.count("SWIFT_VERSION = 6.0;") == 2 and text.count("IPHONEOS_DEPLOYMENT_TARGET = 17.0;") == 2
    package = (APP / "BenchmarkCore/Package.swift").read_text()
    assert "swift-tools-version: 6.0" in package and ".iOS(.v17)" in package


def test_the_shared_scheme_builds_the_target(project: XcodeProject) -> None:
    scheme = (APP / "Pocketphi.xcodeproj/xcshareddata/xcschemes/Pocketphi.xcscheme").read_text()
    target = one(project, "PBXNativeTarget")
    assert set(re.findall(r'BlueprintIdentifier = "(\w+)"', scheme)) == {str(target.get_id())}
    assert re.search(r'<LaunchAction\s+buildConfiguration = "Release"', scheme)


def test_plists() -> None:
    entitlements = plistlib.loads((APP / "Configuration/Pocketphi.entitlements").read_bytes())
    assert entitlements == {"com.apple.developer.kernel.increased-memory-limit": True}
    info = plistlib.loads((APP / "Configuration/Info.plist").read_bytes())
    assert info["UIFileSharingEnabled"] is True and info["LSSupportsOpeningDocumentsInPlace"] is True
    declared = {item["UTTypeIdentifier"]: item for item in info["UTImportedTypeDeclarations"]}
    (opened,) = info["CFBundleDocumentTypes"]
    (kind,) = opened["LSItemContentTypes"]
    assert declared[kind]["UTTypeTagSpecification"]["public.filename-extension"] == ["pte"]


def test_assets(project: XcodeProject) -> None:
    assets = APP / "Pocketphi/Assets.xcassets"
    for path in assets.rglob("Contents.json"):
        assert json.loads(path.read_text())["info"]["version"] == 1
    for configuration in project.objects.get_configurations_on_targets("Pocketphi"):
        settings = configuration.buildSettings
        assert (assets / f"{settings['ASSETCATALOG_COMPILER_APPICON_NAME']}.appiconset/Contents.json").is_file()
        accent = settings["ASSETCATALOG_COMPILER_GLOBAL_ACCENT_COLOR_NAME"]
        assert (assets / f"{accent}.colorset/Contents.json").is_file()
