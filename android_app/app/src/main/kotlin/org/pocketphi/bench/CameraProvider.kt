package org.pocketphi.bench

import android.content.ContentProvider
import android.content.ContentValues
import android.content.Context
import android.database.Cursor
import android.net.Uri
import android.os.ParcelFileDescriptor
import java.io.File
import java.io.FileNotFoundException

/** Takes one file from the camera's app, which is granted that for one picture, and gives nothing else. */
class CameraProvider : ContentProvider() {
    override fun onCreate() = true

    override fun getType(uri: Uri) = "image/jpeg"

    override fun openFile(uri: Uri, mode: String): ParcelFileDescriptor {
        if (uri != URI) throw FileNotFoundException("no such picture: $uri")
        val file = file(context!!)
        file.parentFile!!.mkdirs()
        return ParcelFileDescriptor.open(file, ParcelFileDescriptor.parseMode(mode))
    }

    override fun query(uri: Uri, projection: Array<String>?, selection: String?, arguments: Array<String>?, order: String?): Cursor? = null
    override fun insert(uri: Uri, values: ContentValues?): Uri? = null
    override fun update(uri: Uri, values: ContentValues?, selection: String?, arguments: Array<String>?) = 0
    override fun delete(uri: Uri, selection: String?, arguments: Array<String>?) = 0

    companion object {
        /** The same for every picture, so that one is found though the app was ended while the camera was in front. */
        val URI: Uri = Uri.parse("content://org.pocketphi.bench.camera/picture.jpg")

        fun file(context: Context) = File(context.cacheDir, "camera/picture.jpg")
    }
}
