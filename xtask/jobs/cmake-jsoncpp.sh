# JsonCpp in C++: cmake, ninja and ctest.
cp -a /usr/src/jobs/libjsoncpp-* jsoncpp && cd jsoncpp
quiet cmake -S . -B build -G Ninja "-DCMAKE_BUILD_TYPE=${LONG:+Release}" -DJSONCPP_WITH_POST_BUILD_UNITTEST=OFF -DBUILD_OBJECT_LIBS=OFF -DBUILD_STATIC_LIBS=OFF
if [ -n "${LONG:-}" ]; then
  quiet ninja -C build -j2
  (cd build && ctest 2>&1 | sed -n 's/ *[0-9.]* sec$//; /tests passed/p; /Test.*#/p')
  ./build/bin/jsoncpp_test | tail -1
else
  quiet ninja -C build -j2 jsoncpp_lib
fi
find build -name '*.so.*' -type f -exec sha256sum {} + | sort
