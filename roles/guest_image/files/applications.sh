#!/bin/sh
# mmdebstrap customize hook, before customize.sh, where the image has packages of applications: $1 is the guest's root.
set -eu
root=$1

# Their services are off, so that guests which do not use them are as idle as those of the plain image.
for link in "$root"/etc/systemd/system/*.wants/*; do
  case ${link##*/} in
    cloud-*|ssh.service|systemd-*|getty@*|remote-fs.target|apt-*|dpkg-*|e2scrub_*|fstrim.timer) ;;
    *) rm "$link" ;;
  esac
done

# Their folders for logs are made again at each boot; customize.sh leaves no log.
find "$root/var/log" -mindepth 1 -type d -printf 'd "/var/log/%P" %m %U %G\n' > "$root/etc/tmpfiles.d/testbed-logs.conf"

