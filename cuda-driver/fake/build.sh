#!/bin/sh
# Builds the libraries for tests: `build.sh FOLDER` all of them, `build.sh FOLDER LIBRARY` one. With
# MISSING=function in the environment, libcuda.so.1 has none of that name. Several processes may build
# into one folder at once: each library is moved there when it is whole.
set -eu

folder=$1
libraries=${2:-libcuda.so.1 libnvrtc.so.13 libcublas.so.13}
sources=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$folder"

# Compiles SOURCE into LIBRARY by the command that follows, unless it is newer.
build() {
    library=$folder/$1
    source=$sources/$2
    shift 2
    if [ "$library" -nt "$source" ] && [ "$library" -nt "$sources/build.sh" ]; then
        return
    fi
    "$@" -Wall -Werror -fPIC -shared -pthread "$source" -o "$library.$$" -ldl
    mv "$library.$$" "$library"
}

for library in $libraries; do
    case $library in
        libcuda.so.1)
            build "$library" libcuda.c cc -O2 ${MISSING:+"-D$MISSING=absent_symbol"}
            ;;
        libnvrtc.so.13)
            build "$library" libnvrtc.cpp g++ -std=c++17 -O2 -fvisibility=hidden \
                "-DFAKE_SOURCES=\"$sources\""
            ;;
        libcublas.so.13)
            # Sums are vectors of several outputs, never of one: their order stays.
            build "$library" libcublas.c cc -O3 -march=native -ffp-contract=off
            ;;
        libnvidia-ml.so.1)
            # Not among all of them: what needs no more than that there is one, as UCX does.
            build "$library" libnvidia-ml.c cc -O2
            ;;
        *)
            echo "build.sh: no library $library" >&2
            exit 1
            ;;
    esac
done
