# Follows customize.sh where applications' packages are in the image: their services are off, so that guests which do not
# use them are as idle as those of the plain image. A workload starts what it needs.
for link in "$root"/etc/systemd/system/*.wants/*; do
  case ${link##*/} in
    cloud-*|ssh.service|systemd-*|getty@*|remote-fs.target|apt-*|dpkg-*|e2scrub_*|fstrim.timer) ;;
    *) rm "$link" ;;
  esac
done
