#!/bin/bash
# Makes the container images that the [sig-network] tests name, of programs of this machine and of Debian packages that are
# unpacked and not installed: $PORTOLAN_TOOLS/conformance/images.tar, a docker archive.
#
# Unlike in the real images, dig and getent are those of glibc, wget is GNU's (Debian's static busybox has one that crashes),
# nginx is Debian's and iperf is 2.1.8.
set -euo pipefail
suite=$PORTOLAN_TOOLS/conformance
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
libraries=/lib/x86_64-linux-gnu

# Not of the list that the Makefile installs: the machine needs none of them.
packages=(busybox netcat-openbsd libbsd0 libmd0 socat libwrap0 conntrack libnetfilter-conntrack3 libnfnetlink0 iperf libnsl2
	libtirpc3 libgssapi-krb5-2 libkrb5-3 libk5crypto3 libcom-err2 libkrb5support0 libkeyutils1)

# Programs of this machine that the tests start in the large image.
programs=(wget dig nslookup host curl ip ss bash nginx getent hostname ipcs awk sed grep iptables nft)

# Libraries that these load by name, or that the unpacked programs need.
more_libraries=(libreadline.so.8 libssl.so.3 libcrypto.so.3 libtinfo.so.6 libgcc_s.so.1 libstdc++.so.6 libm.so.6 libpthread.so.0
	libnss_dns.so.2 libnss_files.so.2 libresolv.so.2 libmnl.so.0)

unpack() {
	mkdir -p "$work/debs" "$work/unpacked"
	# apt-get downloads as a user of its own.
	chmod 755 "$work"; chmod 777 "$work/debs"
	# The lists of a machine that installed nothing for a while name versions that are no longer served.
	apt-get update -qq
	(cd "$work/debs" && apt-get download -q "${packages[@]}" > /dev/null)
	local package
	for package in "$work"/debs/*.deb; do
		dpkg-deb -x "$package" "$work/unpacked"
	done
}

# needed PROGRAM: the libraries it is linked to.
needed() {
	{ ldd "$1" 2> /dev/null || true; } | { grep -o '/[^ ]*' || true; }
}

# copy_libraries PROGRAM ROOT
copy_libraries() {
	local library
	for library in $(needed "$1"); do
		[ -e "$2$library" ] || install -D "$library" "$2$library"
	done
}

busybox_root() {
	local root=$1 applet
	mkdir -p "$root"/{bin,tmp,etc,root,proc,sys,dev,var,usr/bin,usr/sbin,sbin}
	chmod 1777 "$root/tmp"
	cp "$work/unpacked/bin/busybox" "$root/bin/"
	copy_libraries "$root/bin/busybox" "$root"
	for applet in $("$root/bin/busybox" --list); do
		[ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
	done
	printf '%s\n' root:x:0:0:root:/root:/bin/sh user-defined-in-image:x:1000:1000::/home:/bin/sh > "$root/etc/passwd"
	printf '%s\n' root:x:0: user-defined-in-image:x:1000: group-defined-in-image:x:50000:user-defined-in-image > "$root/etc/group"
	printf '%s\n' 'passwd: files' 'group: files' 'hosts: files dns' > "$root/etc/nsswitch.conf"
}

# Everything else, on top of busybox.
full_root() {
	local root=$1 program path library
	cp -a "$work/busybox" "$root"
	mkdir -p "$root$libraries"
	for program in "${programs[@]}"; do
		path=$(readlink -f "$(command -v "$program")")
		install -D "$path" "$root$path"
		copy_libraries "$path" "$root"
		rm -f "$root/bin/$program"
		ln -s "$path" "$root/bin/$program"
	done
	install "$work"/unpacked/{bin/nc.openbsd,usr/bin/socat,usr/sbin/conntrack,usr/bin/iperf} "$root/usr/bin/"
	find "$work/unpacked/usr$libraries" "$work/unpacked$libraries" -maxdepth 1 -name '*.so*' -exec cp -a -t "$root$libraries" {} + 2> /dev/null || true
	for library in "${more_libraries[@]}"; do
		[ -e "$root$libraries/$library" ] || cp -L "$libraries/$library" "$root$libraries/" 2> /dev/null || true
	done
	ldconfig -r "$root"
	ln -sf /usr/bin/nc.openbsd "$root/bin/nc"
	ln -sf "$(readlink -f /bin/bash)" "$root/bin/sh"
	# busybox tries once, GNU wget 20 times.
	mv "$root/usr/bin/wget" "$root/usr/bin/wget.gnu"
	printf '#!/bin/sh\nexec /usr/bin/wget.gnu -t 1 "$@"\n' > "$root/usr/bin/wget"
	chmod 755 "$root/usr/bin/wget"
	web_server "$root"
	mkdir -p "$root/uploads" "$root/run"
	cp "$suite/agnhost" "$root/agnhost"
	ln -s agnhost "$root/agnhost-2"
	cp "$PORTOLAN_TOOLS/coredns" "$root/coredns"
	cp "$suite"/localhost.{crt,key} "$root/"
}

web_server() {
	mkdir -p "$1"/{www,etc/nginx,var/log/nginx,var/lib/nginx}
	echo hello > "$1/www/index.html"
	cat > "$1/etc/nginx/nginx.conf" <<- 'CONF'
		daemon off; user root root; error_log stderr; pid /tmp/nginx.pid; events {}
		http {
			access_log off; client_body_temp_path /tmp/b; proxy_temp_path /tmp/p; fastcgi_temp_path /tmp/f;
			uwsgi_temp_path /tmp/u; scgi_temp_path /tmp/s; server { listen 80; root /www; }
		}
	CONF
}

# Each program has to start: one without a library, which ends with 127, would fail a test much later.
check() {
	local root=$1 line status
	while read -r line; do
		# shellcheck disable=SC2086 # words of a command line
		chroot "$root" $line > "$work/output" 2>&1 && continue || status=$?
		if [ $status -ge 126 ]; then
			{ echo "$line cannot be started in the image:"; head -3 "$work/output"; } >&2
			return 1
		fi
	done <<- LINES
		dig -v
		curl -V
		ss -V
		nc -h
		socat -V
		conntrack -V
		nginx -v
		getent hosts localhost
		bash -c true
		sh -c true
		nslookup -version
		ip -V
		iptables -V
		iperf -v
		awk BEGIN{}
		wget --help
		seq 3
		timeout 1 true
		/coredns -version
		/agnhost --help
	LINES
}

manifest=
# image NAME ROOT ENTRYPOINT CMD: one more image in the archive. Images of one root share its layer.
image() {
	local config layer=$work/archive/$2.tar
	config=$(tr '/:' '__' <<< "$1").json
	[ -e "$layer" ] || tar cf "$layer" -C "$work/$2" .
	printf '{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/bin:/usr/bin:/usr/sbin:/sbin:/usr/local/bin"],"Entrypoint":%s,"Cmd":%s},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
		"$3" "$4" "$(sha256sum "$layer" | cut -d' ' -f1)" > "$work/archive/$config"
	manifest+=${manifest:+,}"{\"Config\":\"$config\",\"RepoTags\":[\"$1\"],\"Layers\":[\"$2.tar\"]}"
}

# tag NAME: an image and its tag, as the suite has them.
tag() {
	sed -n "s|.*configs\[$1\] *= Config{[^,]*, \"\([^\"]*\)\", \"\([^\"]*\)\"}|\1:\2|p" "$suite/manifest.go"
}

archive() {
	local registry=registry.k8s.io/e2e-test-images name
	mkdir -p "$work/archive"
	for name in Agnhost AgnhostPrev; do
		image "$registry/$(tag $name)" full '["/agnhost"]' '["pause"]'
	done
	for name in Nginx NginxNew; do
		image "$registry/$(tag $name)" full '["nginx"]' null
	done
	image "$registry/$(tag BusyBox)" busybox null '["sh"]'
	image "$registry/$(tag GlibcDnsTesting)" full null '["sh"]'
	image "$registry/$(tag RegressionIssue74839)" regression '["/regression-issue-74839"]' null
	image "registry.k8s.io/build-image/$(tag DistrolessIptables)" full null '["sh"]'
	image "registry.k8s.io/$(tag Pause)" pause '["/pause"]' null
	tag Pause > "$suite/pause-tag"
	echo "[$manifest]" > "$work/archive/manifest.json"
	tar cf "$suite/images.tar.new" -C "$work/archive" .
	mv "$suite/images.tar.new" "$suite/images.tar"
}

unpack
busybox_root "$work/busybox"
full_root "$work/full"
check "$work/full"
mkdir "$work/pause"
cp "$suite/pause" "$work/pause/"
cp -a "$work/busybox" "$work/regression"
cp "$suite/regression-issue-74839" "$work/regression/"
archive
