#!/usr/bin/env bash
# A real S3 server for tests: Ceph's radosgw over one monitor and one in-memory store, in a folder of its own.
#
#   scripts/start_s3_server.sh FOLDER     stays in the foreground; ends all it started on TERM, INT or exit
#
# Prints one line "ready http://127.0.0.1:PORT" once S3 answers; keys: testaccess / testsecretkey123, or AWS_ACCESS_KEY_ID
# and AWS_SECRET_ACCESS_KEY where S3_PORT (and S3_HOST) say where it listens.
# Needs: apt-get install --no-install-recommends radosgw ceph-mon ceph-osd ceph-common
set -euo pipefail
folder=$(realpath -m "${1:?folder for its files}")

for binary in ceph-mon ceph-osd radosgw ceph ceph-authtool monmaptool radosgw-admin python3; do
    command -v "$binary" >/dev/null || { echo "$binary is not installed" >&2; exit 69; }
done
mkdir -p "$folder"/{mon,osd,rgw,run,log}

children=()
stop() {
    trap - EXIT INT TERM
    # gateway first, monitor last: the other way round each waits for the one before it
    for ((i = ${#children[@]} - 1; i >= 0; i--)); do kill -KILL "${children[i]}" 2>/dev/null || true; done
    wait 2>/dev/null || true
}
trap stop EXIT
trap 'exit 143' INT TERM

# below the range that outgoing connections take theirs from: the gateway binds its port ten seconds after it was chosen
read -r port mon_v2 mon_v1 < <(python3 -c '
import random, socket
with open("/proc/sys/net/ipv4/ip_local_port_range") as limits:
    lowest = int(limits.read().split()[0])
ports = []
while len(ports) < 3:
    port = random.randrange(lowest // 2, lowest)
    with socket.socket() as tried:
        if port not in ports and tried.connect_ex(("127.0.0.1", port)):
            ports.append(port)
print(*ports)')

host=127.0.0.1 access_key=testaccess secret_key=testsecretkey123
if [ -n "${S3_PORT:-}" ]; then
    port=$S3_PORT host=${S3_HOST:-$host} access_key=$AWS_ACCESS_KEY_ID secret_key=$AWS_SECRET_ACCESS_KEY
fi

export CEPH_CONF=$folder/ceph.conf
keyring=$folder/keyring
cat >"$CEPH_CONF" <<CONF
[global]
fsid = $(cat /proc/sys/kernel/random/uuid)
mon host = [v2:127.0.0.1:$mon_v2/0,v1:127.0.0.1:$mon_v1/0]
mon initial members = t
public network = 127.0.0.0/8
keyring = $keyring
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
mon data = $folder/mon
osd data = $folder/osd
rgw data = $folder/rgw
run dir = $folder/run
admin socket = $folder/run/\$name.asok
pid file = $folder/run/\$name.pid
log file = $folder/log/\$name.log
mon data avail crit = 1
mon warn on pool no redundancy = false
mon max pg per osd = 1000
osd objectstore = memstore
memstore device bytes = 2147483648
osd crush chooseleaf type = 0
osd pool default size = 1
osd pool default min size = 1
mon allow pool size one = true
osd pool default pg num = 2
osd pool default pgp num = 2
osd pool default pg autoscale mode = off
rgw frontends = beast endpoint=$host:$port
rgw thread pool size = 16
CONF

say() { "$@" >>"$folder/log/setup.log" 2>&1; }
start() { "$@" >"$folder/log/$(basename "$1").out" 2>&1 & children+=($!); }
until_true() {
    for _ in $(seq 150); do
        if "$@" >/dev/null 2>&1; then return 0; fi
        for child in "${children[@]}"; do kill -0 "$child" 2>/dev/null || break 2; done
        sleep 0.2
    done
    echo "gave up on: $*" >&2
    tail -n 3 "$folder"/log/* >&2
    return 1
}
osd_is_up() { ceph --connect-timeout 5 osd stat | grep -q '1 up'; }
gateway_answers() { (exec 3<>"/dev/tcp/127.0.0.1/$port"); }

say ceph-authtool --create-keyring "$keyring" --gen-key -n mon. --cap mon 'allow *'
for name in client.admin osd.0 client.rgw.t; do
    say ceph-authtool "$keyring" --gen-key -n "$name" --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
done
fsid=$(sed -n 's/^fsid = //p' "$CEPH_CONF")
say monmaptool --create --fsid "$fsid" --addv t "[v2:127.0.0.1:$mon_v2,v1:127.0.0.1:$mon_v1]" "$folder/monmap"
say ceph-mon --mkfs -i t --monmap "$folder/monmap" --keyring "$keyring"
start ceph-mon -f -i t
until_true ceph --connect-timeout 5 osd create
say ceph auth import -i "$keyring"
say ceph-osd -i 0 --mkfs
say ceph osd crush add osd.0 1.0 root=default host=localhost
start ceph-osd -f -i 0
until_true osd_is_up
say radosgw-admin user create --uid=test --display-name=test --access-key="$access_key" --secret-key="$secret_key"
start radosgw -f -n client.rgw.t
until_true gateway_answers
echo "ready http://127.0.0.1:$port"
wait -n "${children[@]}"
echo "one of the server's processes ended; see $folder/log" >&2
exit 1
