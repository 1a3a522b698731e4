#!/usr/bin/env bash
# Fetches pictures to train on: the photographs and drawings of Debian's package
# tuxpaint-stamps-default, which are under the GPL, in seven folders in ./stamps.
set -euo pipefail

package=$(mktemp -d)
trap 'rm -r "$package"' EXIT
(cd "$package" && apt-get download tuxpaint-stamps-default)
dpkg-deb -x "$package"/tuxpaint-stamps-default_*.deb "$package"
for class in animals food plants seasonal symbols town vehicles; do
    mkdir -p "stamps/$class"
    find "$package" -path "*/stamps/$class/*.png" ! -name "*_mirror.png" |
        while read -r file; do
            name=${file#*/stamps/}
            cp "$file" "stamps/$class/${name//\//_}"
        done
done
echo "Wrote $(find stamps -name "*.png" | wc -l) pictures to ./stamps"
