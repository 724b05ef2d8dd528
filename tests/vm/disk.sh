#!/bin/bash
# disk.sh SUITE FOLDER IMAGE: a Debian server's disk in FOLDER, with kernel, initrd, the key that root is reached with and the
# server's public key. From the mirror that apt of this machine uses. Of what provisioning brings nothing is in it but the
# guests' image, which is the folder IMAGE here.
set -euo pipefail
suite=$1 folder=$2 image=$3
mirror=$(apt-get indextargets --format '$(ORIGIN) $(COMPONENT) $(CODENAME) $(SITE)' |
  awk '$1 == "Debian" && $2 == "main" && $3 !~ /-/ {print $4; exit}')
[[ $mirror ]] || { echo "apt on this machine knows no mirror of Debian's main archive: add one and run apt-get update" >&2; exit 1; }
mkdir -p "$folder"
making=$(mktemp -d --tmpdir="$folder")
trap 'rm -rf "$making"' EXIT
chmod 0755 "$making"
[[ -e $folder/id_ed25519 ]] || ssh-keygen -q -t ed25519 -N '' -C ksm-testbed-vm -f "$folder/id_ed25519"

cat > "$making/customize" <<'HOOK'
#!/bin/bash
set -euo pipefail
root=$1
echo '/dev/vda / ext4 rw,relatime 0 0' > "$root/etc/fstab"
echo 'nameserver 10.0.2.3' > "$root/etc/resolv.conf"
printf '[Match]\nName=en* eth*\n[Network]\nDHCP=ipv4\n' > "$root/etc/systemd/network/vm.network"
chroot "$root" systemctl --quiet enable systemd-networkd.service
# A dead proxy or a clock that the archive's dates do not fit is this machine's, and so the VM's.
apt-config dump Acquire | grep -E '^Acquire::(https?::Proxy|Check-)' > "$root/etc/apt/apt.conf.d/90machine" || true
install -D -m 0600 "$PUBLIC_KEY" "$root/root/.ssh/authorized_keys"
# An initrd with the disk's driver alone: unpacking all drivers takes an emulated CPU a minute.
echo 'MODULES=list' > "$root/etc/initramfs-tools/conf.d/vm"
printf 'virtio_pci\nvirtio_blk\next4\n' >> "$root/etc/initramfs-tools/modules"
chroot "$root" update-initramfs -u -k all
# QEMU brings it, so none that packages would make anew is ever used.
sed -i 's/^update_initramfs=.*/update_initramfs=no/' "$root/etc/initramfs-tools/update-initramfs.conf"
: > "$root/etc/machine-id"
HOOK
chmod +x "$making/customize"
PUBLIC_KEY=$folder/id_ed25519.pub mmdebstrap --quiet --mode=root --variant=important --format=directory \
  --aptopt='Apt::Install-Recommends "false"' \
  --include=linux-image-amd64,initramfs-tools,systemd-sysv,dbus,openssh-server,python3,apparmor,ca-certificates \
  --customize-hook="$making/customize" "$suite" "$making/root" "$mirror"
cp "$making"/root/boot/vmlinuz-* "$folder/vmlinuz"
cp "$making"/root/boot/initrd.img-* "$folder/initrd"
cp "$making/root/etc/ssh/ssh_host_ed25519_key.pub" "$folder/host_key.pub"
images=$making/root/var/lib/ksm-testbed/images
mkdir -p "$images"
cp -a --no-preserve=ownership "$image" "$images"
truncate --size=10G "$making/raw"
mke2fs -q -t ext4 -d "$making/root" "$making/raw"
qemu-img convert -f raw -O qcow2 "$making/raw" "$making/disk.qcow2"
mv "$making/disk.qcow2" "$folder/disk.qcow2"
