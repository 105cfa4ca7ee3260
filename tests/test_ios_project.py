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

from export.engine.native import FLAGS

ROOT = Path(__file__).parents[1]
APP = ROOT / "ios_app"
ENGINE = ROOT / "export/engine/cpp"
OURS = {"BenchmarkCore", "PocketphiEngine"}
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
        assert name.split("/")[0] in ("Pocketphi", "BenchmarkCore"), name
    assert (APP / "Pocketphi/PocketphiApp.swift").read_text().count("@main") == 1


def place_of(project: XcodeProject, key: str) -> Path:
    """Where a file or folder of the project lies."""
    groups = project.objects.get_objects_in_section("PBXGroup")
    parent = next((group for group in groups if key in map(str, group["children"] or [])), None)
    own = project.objects[key]["path"]
    above = place_of(project, str(parent.get_id())) if parent is not None else APP
    return (above / own).resolve() if own else above


def test_every_referenced_file_exists(project: XcodeProject) -> None:
    references = project.objects.get_objects_in_section("PBXFileReference", "PBXFileSystemSynchronizedRootGroup")
    places = [place_of(project, str(item.get_id())) for item in references if item.sourceTree == "<group>"]
    named = {place.name for place in places if not place.is_relative_to(ENGINE)}
    assert named == {"Info.plist", "Pocketphi.entitlements", "Pocketphi"}
    for place in places:
        assert place.exists(), place
    for configuration in project.objects.get_configurations_on_targets("Pocketphi"):
        for setting in ("INFOPLIST_FILE", "CODE_SIGN_ENTITLEMENTS"):
            assert (APP / configuration.buildSettings[setting]).is_file()
    assert (APP / one(project, "XCLocalSwiftPackageReference").relativePath / "Package.swift").is_file()


def test_the_engines_sources_are_compiled_where_they_lie(project: XcodeProject) -> None:
    """A source that is added to the engine must be added here, or the app does not link."""
    phase = one(project, "PBXSourcesBuildPhase")
    compiled = [place_of(project, str(project.objects[str(key)].fileRef)) for key in phase.files]
    assert len(compiled) == len(set(compiled))
    assert set(compiled) == {*ENGINE.glob("*.cpp"), *(ENGINE / "tokenizer").glob("*.cpp")}
    shown = project.objects.get_objects_in_section("PBXFileReference")
    headers = {place_of(project, str(item.get_id())) for item in shown if str(item.path).endswith(".h")}
    assert headers == {*ENGINE.glob("*.h"), *(ENGINE / "tokenizer").glob("*.h")}


def test_the_engine_is_compiled_as_elsewhere(project: XcodeProject) -> None:
    for item in project.objects.get_configurations_on_targets("Pocketphi"):
        settings = item.buildSettings
        assert set(FLAGS) >= {"-std=c++17", *settings["OTHER_CPLUSPLUSFLAGS"][1:]}
        assert settings["OTHER_CPLUSPLUSFLAGS"][1:] == ["-ffp-contract=off"]
        found = [path.strip('\\"') for path in settings["HEADER_SEARCH_PATHS"][1:]]
        assert found[0] == "$(BUILT_PRODUCTS_DIR)/include"  # where Xcode lays the headers of ExecuTorch's framework
        for path in found[1:]:
            assert Path(path.replace("$(SRCROOT)", str(APP))).is_dir(), path
        assert Path(found[1].replace("$(SRCROOT)", str(APP)), "pytorch/tokenizers/tokenizer.h").is_file()
    text = (APP / "Pocketphi.xcodeproj/project.pbxproj").read_text()
    assert text.count('CLANG_CXX_LANGUAGE_STANDARD = "c++17";') == 2


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
    engine = (APP / "BenchmarkCore/Sources/PocketphiEngine/NativeEngine.swift").read_text()
    assert f'executorch = "{executorch}"' in engine
    products = project.objects.get_objects_in_section("XCSwiftPackageProductDependency")
    assert {item.productName for item in products} == PRODUCTS | OURS
    for item in products:
        assert (item["package"] is None) == (item.productName in OURS)
    built = project.objects.get_objects_in_section("PBXBuildFile")
    linked = {str(item.productRef) for item in built if item["productRef"] is not None}
    assert linked == {str(item.get_id()) for item in products}
    configurations = project.objects.get_configurations_on_targets("Pocketphi")
    assert {item.name for item in configurations} == {"Debug", "Release"}
    for item in configurations:
        assert {"-all_load", "-lc++"} <= set(item.buildSettings["OTHER_LDFLAGS"])
        (defined,) = (word for word in item.buildSettings["GCC_PREPROCESSOR_DEFINITIONS"] if word[0] != "$")
        assert re.sub(r"\W+", " ", defined).split() == ["POCKETPHI_EXECUTORCH_VERSION", *executorch.split(".")]
        assert item.buildSettings["MARKETING_VERSION"] == pins["version"]
        assert item.buildSettings["PRODUCT_BUNDLE_IDENTIFIER"] == "org.pocketphi.bench"
    text = (APP / "Pocketphi.xcodeproj/project.pbxproj").read_text()
    assert text.count("SWIFT_VERSION = 6.0;") == 2 and text.count("IPHONEOS_DEPLOYMENT_TARGET = 17.0;") == 2
    package = (APP / "BenchmarkCore/Package.swift").read_text()
    assert "swift-tools-version: 6.0" in package and ".iOS(.v17)" in package
    for name in OURS:
        assert f'.library(name: "{name}"' in package


def test_the_shared_scheme_builds_the_target(project: XcodeProject) -> None:
    scheme = (APP / "Pocketphi.xcodeproj/xcshareddata/xcschemes/Pocketphi.xcscheme").read_text()
    target = one(project, "PBXNativeTarget")
    assert set(re.findall(r'BlueprintIdentifier = "(\w+)"', scheme)) == {str(target.get_id())}
    assert re.search(r'<LaunchAction\s+buildConfiguration = "Release"', scheme)


def test_plists() -> None:
    entitlements = plistlib.loads((APP / "Configuration/Pocketphi.entitlements").read_bytes())
    assert entitlements == {
        "com.apple.developer.kernel.increased-memory-limit": True,
        "com.apple.developer.kernel.extended-virtual-addressing": True,
    }
    info = plistlib.loads((APP / "Configuration/Info.plist").read_bytes())
    assert info["UIFileSharingEnabled"] is True and info["LSSupportsOpeningDocumentsInPlace"] is True
    for device in ("Camera", "Microphone"):  # without these the system ends an app that asks for one
        assert "on this device" in info[f"NS{device}UsageDescription"]
    declared = {item["UTTypeIdentifier"]: item for item in info["UTImportedTypeDeclarations"]}
    (opened,) = info["CFBundleDocumentTypes"]
    (kind,) = opened["LSItemContentTypes"]
    assert declared[kind]["UTTypeTagSpecification"]["public.filename-extension"] == ["pte"]


def test_the_privacy_manifest_names_what_the_app_asks_of_files() -> None:
    """Apple's lists of functions that need a reason; the manifest is in the target as a part of its folder."""
    manifest = plistlib.loads((APP / "Pocketphi/PrivacyInfo.xcprivacy").read_bytes())
    reasons = {
        item["NSPrivacyAccessedAPIType"].removeprefix("NSPrivacyAccessedAPICategory"): item[
            "NSPrivacyAccessedAPITypeReasons"
        ]
        for item in manifest["NSPrivacyAccessedAPITypes"]
    }
    assert reasons == {"FileTimestamp": ["C617.1", "3B52.1"], "DiskSpace": ["E174.1"], "UserDefaults": ["CA92.1"]}
    assert manifest["NSPrivacyTracking"] is False and manifest["NSPrivacyCollectedDataTypes"] == []
    swift = [path for path in APP.rglob("*.swift") if "Tests" not in path.parts and "rehearse" not in path.parts]
    text = "".join(path.read_text() for path in [*swift, *ENGINE.rglob("*.cpp")])
    listed = {
        "FileTimestamp": r"\bf?stat\(|attributesOfItem",
        "DiskSpace": r"\bstatvfs\b|systemFreeSize",
        "UserDefaults": r"\bUserDefaults\b",
        "SystemBootTime": r"\bsystemUptime\b|mach_absolute_time",
        "ActiveKeyboards": r"\bactiveInputModes\b",
    }
    assert {name for name, used in listed.items() if re.search(used, text)} == set(reasons)


def test_assets(project: XcodeProject) -> None:
    assets = APP / "Pocketphi/Assets.xcassets"
    for path in assets.rglob("Contents.json"):
        assert json.loads(path.read_text())["info"]["version"] == 1
    for configuration in project.objects.get_configurations_on_targets("Pocketphi"):
        settings = configuration.buildSettings
        assert (assets / f"{settings['ASSETCATALOG_COMPILER_APPICON_NAME']}.appiconset/Contents.json").is_file()
        accent = settings["ASSETCATALOG_COMPILER_GLOBAL_ACCENT_COLOR_NAME"]
        assert (assets / f"{accent}.colorset/Contents.json").is_file()
